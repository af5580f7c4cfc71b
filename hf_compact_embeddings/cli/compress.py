"""Compress a model's table and save the compact model, ready for AutoModel."""

from __future__ import annotations

import argparse

from .. import progress
from ..checkpoints import (
    folder_bytes,
    load_compact,
    load_dense,
    load_tokenizer,
    require_free_folder,
    write_checkpoint,
)
from ..compression import compress
from ..effort import DEFAULT_MINUTES
from ..evaluation.report import inspect
from ..fitting.methods import make_config
from ..hub import write_card
from ..layers import require_known
from ..modeling.errors import CompactConfigError
from ..settings import parse_setting
from .arguments import (
    add_budget_arguments,
    add_tables_argument,
    add_token_arguments,
    add_verbose_argument,
    auto_class,
    budget_options,
    token_options,
)
from .outcome import Outcome


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("model", help="Hub id or folder of a dense model")
    parser.add_argument("--method", help="name of a method (see `hf-compact methods`); or give a budget:")
    add_budget_arguments(parser, required=False)
    add_tables_argument(parser)
    parser.add_argument(
        "--layers",
        metavar="TYPE",
        help="store the linear layers small, too: int8, int4, float16 or bfloat16; alone, of a model that is compact",
    )
    parser.add_argument(
        "--set",
        dest="options",
        action="append",
        default=[],
        metavar="OPTION=VALUE",
        help="set a method's option",
    )
    parser.add_argument("--output", required=True, help="folder to write; must be absent or empty")
    parser.add_argument("--head", metavar="AUTOCLASS", help="Auto class to load with, for example AutoModelForMaskedLM")
    add_token_arguments(parser)
    parser.add_argument("--seed", type=int, default=0, help="of all random choices")
    parser.add_argument("--device", help="where to fit; by default a GPU where there is one")
    parser.add_argument(
        "--effort",
        default="balanced",
        metavar="EFFORT",
        help="fast (reads no texts, searches less), balanced (default), or best, which also calibrates the fit",
    )
    parser.add_argument(
        "--minutes", type=float, metavar="N", help=f"that best may take; by default {DEFAULT_MINUTES:g}"
    )
    add_verbose_argument(parser)


def run(options: argparse.Namespace) -> Outcome:
    """Compress, save, and report."""
    with progress.report(aloud=True, table=options.verbose):
        return _run(options)


def _run(options: argparse.Namespace) -> Outcome:
    require_free_folder(options.output)
    settings = dict(parse_setting(setting, "--set") for setting in options.options)
    budget = budget_options(options)
    require_known(options.layers)
    only_layers = options.layers is not None and options.method is None and not budget
    if (options.method is None) == (not budget) and not only_layers:
        raise CompactConfigError("Give either `--method`, with its options, or one of the budgets.")
    if options.method is not None:
        # Raises here, before anything slow, if there is no such method or option.
        make_config(options.method, **settings)
    evidence = token_options(options)
    head = None if options.head is None else auto_class(options.head)
    with progress.stage("Loading the model"):
        model = load_compact(options.model) if only_layers else load_dense(options.model, head)
        tokenizer = load_tokenizer(options.model)
    compact = compress(
        model,
        options.method,
        tables=options.tables,
        layers=options.layers,
        tokenizer=tokenizer,
        seed=options.seed,
        device=options.device,
        effort=options.effort,
        minutes=options.minutes,
        **evidence,
        **settings,
        **budget,
    )
    with progress.stage("Inspecting and saving"):
        report = inspect(compact, against=None if only_layers else model)
        written = write_checkpoint(
            compact, options.output, tokenizer, options.model, lambda folder: write_card(folder, compact, report)
        )
    size = folder_bytes(written)
    return Outcome(
        report.to_dict() | {"output": str(written), "folder_bytes": size},
        f"{report}\n{'whole folder':<24}{size:,} bytes\n{'written to':<24}{written}",
    )
