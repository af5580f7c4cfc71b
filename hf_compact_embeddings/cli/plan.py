"""List configurations that keep a budget, best first."""

from __future__ import annotations

import argparse
import dataclasses

from .. import progress
from ..checkpoints import load_dense, load_tokenizer
from ..modeling.options import StructureConfig
from ..planning import Plan, plan
from .arguments import (
    add_budget_arguments,
    add_tables_argument,
    add_token_arguments,
    add_verbose_argument,
    budget_options,
    token_options,
)
from .outcome import Outcome, table

# What every method has, and what the size shows already.
_HIDDEN = {field.name for field in dataclasses.fields(StructureConfig)}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("model", help="Hub id or folder of a dense model")
    add_budget_arguments(parser)
    add_tables_argument(parser)
    add_token_arguments(parser)
    parser.add_argument("--seed", type=int, default=0, help="of the sample and the fits")
    add_verbose_argument(parser)


def run(options: argparse.Namespace) -> Outcome:
    """Try all candidates on a sample."""
    evidence = token_options(options)
    with progress.report(aloud=True, table=options.verbose):
        with progress.stage("Loading the model"):
            dense, tokenizer = load_dense(options.model), load_tokenizer(options.model)
        given = evidence | budget_options(options)
        plans = plan(dense, tables=options.tables, tokenizer=tokenizer, seed=options.seed, **given)
    return Outcome({"plans": [found.to_dict() for found in plans]}, _text(plans))


def _text(plans: list[Plan]) -> str:
    header = ["candidate", "bytes", "ratio", "predicted error", "bound", "above it", "head"]
    rows = [
        [
            ("" if found.table == "input" else f"{found.table}: ") + _name(found.config),
            f"{found.bytes:,}",
            f"{found.ratio:.1f}x",
            f"{'about ' if found.rough else ''}{found.predicted_error:.4f}",
            f"{found.bound:.4f}",
            f"{found.gap_db:.2f} dB",
            "-" if found.head_cost is None else f"{found.head_cost:.3f}",
        ]
        for found in plans
    ]
    notes = [
        "predicted error: relative MSE, weighted by token frequency and by what errors do to the model, where known; "
        "about: seen early to be no match for the best",
        "head: time to score one state against all tokens, over a dense head's, on a sample; - where there is none",
    ]
    return "\n".join([table(header, rows), "", *notes])


def _name(config: StructureConfig) -> str:
    default = type(config)().to_json()
    shown = {
        name: value
        for name, value in config.to_json().items()
        if name not in _HIDDEN and isinstance(value, int | float | str) and value != default[name]
    }
    return " ".join([config.method, *(f"{name}={value}" for name, value in shown.items())])
