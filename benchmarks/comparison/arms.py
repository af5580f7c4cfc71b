"""Arms: what makes a table of so many bytes. Another method or another library is another function here, and a file."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import hf_compact_embeddings as hce

from ..common.library import compress_within, word_counts
from ..frontier.peers import Task, fit_peer, missing, opq_settings, pq_settings
from .experiment import Experiment

_FLOAT32_BYTES = 4
# Product codes draw the rows that they train on by this power of the count.
_CHANCE_POWER = 0.75


@dataclasses.dataclass(frozen=True)
class Made:
    """A model with a table of some kind.

    Attributes:
        model: that reads it.
        table_bytes: everything that the table needs, counted.
        details: what else the record should say.
    """

    model: PreTrainedModel
    table_bytes: int
    details: dict[str, Any] = dataclasses.field(default_factory=dict)


def one_call(dense: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, experiment: Experiment) -> Made:
    """`hce.compress(model, ratio=…)`, with the experiment's options."""
    return _made(hce.compress(dense, ratio=experiment.ratio, tokenizer=tokenizer, **experiment.options), dense)


def method(dense: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, experiment: Experiment) -> Made:
    """One method by name; what it needs to know of texts and languages stands under `evidence`."""
    options = dict(experiment.options)
    evidence, name = options.pop("evidence", {}), options.pop("method")
    options.setdefault("ratio", experiment.ratio)
    return _made(compress_within(dense, name, options, tokenizer, **evidence), dense)


def planned(dense: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, experiment: Experiment) -> Made:
    """The best candidate of one method that `hce.plan` knows for the ratio."""
    evidence = dict(experiment.options)
    name = evidence.pop("method")
    plans = hce.plan(dense, ratio=experiment.ratio, tokenizer=tokenizer, **evidence)
    chosen = next((plan for plan in plans if plan.config.method == name), None)
    if chosen is None:
        raise LookupError(f"{name} has no candidate at {experiment.ratio:g}x")
    return _made(hce.compress(dense, chosen.config, tokenizer=tokenizer, **evidence), dense)


def peer(dense: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, experiment: Experiment) -> Made:
    """Another library's table: its rows are decoded into the dense model, its bytes are its own."""
    options = dict(experiment.options)
    library, name, languages = options.pop("library"), options.pop("method"), options.pop("languages", None)
    why = missing(library)
    if why is not None:
        raise LookupError(f"{library} is not installed ({why})")
    table = dense.get_input_embeddings().weight.detach().numpy()
    counts = word_counts(tokenizer, len(table), languages) if languages else np.ones(len(table))
    chances = np.maximum(counts, counts[counts > 0].min() / 2) ** _CHANCE_POWER
    budget = int(table.size * _FLOAT32_BYTES / experiment.ratio)
    settings = {"pq": _product_codes, "opq": _turned_product_codes}
    chosen = settings[name](table, budget, chances) if name in settings else {"method": name, **options}
    fitted = fit_peer(Task(table, chosen, chances))
    model = copy.deepcopy(dense)
    with torch.no_grad():
        model.get_input_embeddings().weight.copy_(torch.from_numpy(fitted.decode()))
    return Made(model, fitted.num_bytes, {"options": chosen})


def _product_codes(table: np.ndarray, budget: int, chances: np.ndarray) -> dict[str, Any]:
    rows, width = table.shape
    settings = pq_settings(rows, width, budget)
    # Eight bits a code are what is mostly used; where the budget is too small for those, the nearest.
    return min(settings, key=lambda one: abs(one["bits"] - 8))


def _turned_product_codes(table: np.ndarray, budget: int, chances: np.ndarray) -> dict[str, Any]:
    weights = chances / chances.sum()
    centred = table - weights @ table
    variances = np.linalg.eigvalsh((centred * weights[:, None]).T @ centred)
    found = opq_settings(len(table), len(variances), budget, variances, 1)
    if not found:
        raise LookupError("opq needs more bytes for its rotation than there are")
    return found[0]


def _made(compact: PreTrainedModel, dense: PreTrainedModel) -> Made:
    report = hce.inspect(compact, against=dense)
    stored = json.loads(json.dumps(report.options))
    details = {"options": stored, "evidence": report.evidence, "relative_mse": report.relative_mse}
    return Made(compact, report.compact_bytes, details)


Arm = Callable[[PreTrainedModel, PreTrainedTokenizerBase, Experiment], Made]
ARMS: dict[str, Arm] = {"one call": one_call, "method": method, "planned": planned, "peer": peer}
