"""plan(): from a budget to options, best first, judged on a sample of the table."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .checkpoints import load_dense
from .effort import of_fields
from .evidence import Evidence, gather, read_texts
from .evidence.tables import HeadTable, Tables, find_tables, share_of
from .fitting import Method, registered_methods
from .fitting.methods import private_row_bytes
from .fitting.spectrum import gap_db, shannon_bound
from .judging import Judge
from .modeling.errors import CompactConfigError, config_error
from .modeling.options import BUDGETS, StructureConfig
from .progress import report, stage


@dataclasses.dataclass(frozen=True)
class Plan:
    """Options that keep a budget.

    Attributes:
        config: give it to `compress()`.
        bytes: what it takes, exactly, rows kept exactly included.
        ratio: dense over compact bytes.
        predicted_error: the relative MSE that a full fit is expected to leave, weighted by token frequency
            where counts are known.
        rough: whether that is only a guess, since the candidate was seen early to be no match for the best one.
        bound: the relative MSE that a Gaussian source allows at this rate.
        gap_db: predicted_error over bound, in decibels.
        head_cost: time to score one hidden state against all tokens, over that of a dense head, measured here on a
            sample of the rows; None where no head scores through the table.
        table: "input", or "head" for that of an output head that is not tied.
    """

    config: StructureConfig
    bytes: int
    ratio: float
    predicted_error: float
    bound: float
    gap_db: float
    head_cost: float | None
    rough: bool = False
    table: str = "input"

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as plain JSON."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {**values, "config": self.config.to_dict()}


def plan(
    model: PreTrainedModel | str | Path,
    *,
    tables: Tables = "input",
    ratio: float | None = None,
    max_bytes: int | str | None = None,
    bits_per_weight: float | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    token_counts: Tensor | Literal["words", "tokenizer", "uniform"] | None = None,
    texts: Any = None,
    languages: Iterable[str] | None = None,
    private_rows: int = 0,
    tied: bool | None = None,
    seed: int = 0,
    verbose: bool = False,
    **options: Any,
) -> list[Plan]:
    """Return the candidates of all methods that keep a budget, the least predicted error first.

    Args:
        model: a dense model, or a Hub id or folder of one.
        tables: the ones to plan for, as for `compress()`. With "all", the plans for the input table come first, then
            those for the head, each within its own budget; both share `max_bytes`.
        ratio: the table becomes at least this many times smaller; or
        max_bytes: at most this large, as a number or as "1MB"; or
        bits_per_weight: at most this many bits for each value of the table.
        tokenizer: the model's tokenizer; room is left for its special tokens, which are kept exactly.
        token_counts: how often each token occurs (V,), or where that is to be taken from, as for `compress()`.
        texts: texts like those that the model will read, as `compress()` takes them.
        languages: whose words count, as for `compress()`.
        private_rows: room is left for so many rows that are kept exactly, those special tokens among them.
        tied: whether an output head scores through the table; read from the model by default.
        seed: of the sample and the fits.
        verbose: say on stderr what the time was spent on.
        options: what holds in any case; methods without such an option are no candidates.
    """
    with report(table=verbose):
        texts = None if texts is None else read_texts(texts)
        if isinstance(model, str | Path):
            with stage("Loading the model"):
                model = load_dense(model)
        found = find_tables(model, tables)
        evidence = gather(
            model,
            found[0],
            tokenizer=tokenizer,
            token_counts=token_counts,
            texts=texts,
            languages=languages,
            seed=seed,
        )
        plans = []
        for table in found:
            with stage("Planning"):
                plans += plan_for(
                    evidence.of(table),
                    ratio=ratio,
                    max_bytes=None if max_bytes is None else share_of(max_bytes, found, table),
                    bits_per_weight=bits_per_weight,
                    private_rows=private_rows,
                    tied=tied,
                    **options,
                )
    return plans


def plan_for(
    evidence: Evidence,
    *,
    ratio: float | None = None,
    max_bytes: int | str | None = None,
    bits_per_weight: float | None = None,
    private_rows: int = 0,
    tied: bool | None = None,
    cheap: Mapping[str, Any] | None = None,
    **options: Any,
) -> list[Plan]:
    """Return what `plan()` does, from evidence that is gathered already.

    With `cheap`, settings that save time, candidates have these where they have such a field and `options` says nothing
    of it; and those that only a fit to a sample can judge are left out where there are others.
    """
    weight = evidence.table.module.weight.detach()
    rows, width = weight.shape
    budget = _budget(weight, {"ratio": ratio, "max_bytes": max_bytes, "bits_per_weight": bits_per_weight})
    # Which rows are the most frequent only counts tell; room is left for so many all the same.
    counted = evidence.counts is not None
    source = evidence.fit_source(
        {"counts"} if {**(cheap or {}), **options}.get("metric") == "plain" else {"counts", "sensitivity"},
        private_rows=private_rows if counted else 0,
    )
    kept = max(private_rows, source.private_ids.numel())
    found = _with_options(_candidates(rows, width, budget, kept), options)
    if cheap is not None:
        found = _cheap(found, {name: value for name, value in cheap.items() if name not in options})
    if tied is None:
        tied = source.tied
    name = "head" if isinstance(evidence.table, HeadTable) else "input"
    judge = Judge(dataclasses.replace(source, tied=bool(tied)), budget)
    plans = []
    for one in judge.judged(found):
        bound = shannon_bound(judge.eigenvalues, 8 * one.bytes / weight.numel())
        figures = (one.bytes, weight.nbytes / one.bytes, one.error, bound, gap_db(one.error, bound), one.head_cost)
        plans.append(Plan(one.config, *figures, rough=one.rough, table=name))
    if not plans:
        raise CompactConfigError(f"No candidate keeps the budget of {budget:,} bytes with the options {options}.")
    return sorted(plans, key=lambda plan: plan.predicted_error)


def _budget(table: Tensor, given: dict[str, Any]) -> int:
    """Return the bytes that one of three ways of giving a budget allows for a table (V, D)."""
    chosen = {name: value for name, value in given.items() if value is not None}
    if len(chosen) != 1:
        raise CompactConfigError(f"Exactly one of {', '.join(map(repr, BUDGETS))} must be given: {given}.")
    rows, width = table.shape
    budget = StructureConfig(**chosen).budget(rows, width, table.element_size())
    if budget is None or budget >= table.nbytes:
        name, value = next(iter(chosen.items()))
        raise config_error(name, value, f"the dense table takes {table.nbytes:,} bytes already")
    return budget


def _candidates(rows: int, width: int, budget: int, private: int) -> list[tuple[Method, StructureConfig]]:
    """Ask every method for candidates, with the rows that are kept exactly."""
    exact = private * private_row_bytes(StructureConfig(), width)
    found = []
    for method in registered_methods() if budget > exact else []:
        for options in method.candidates(rows, width, budget - exact):
            # Those that plan for themselves need to know the budget, the others have sizes already.
            sizes = {} if method.predict is None else {"max_bytes": budget}
            found.append((method, dataclasses.replace(options, private_rows=private, **sizes)))
    if not found:
        raise CompactConfigError(
            f"The budget is {budget:,} bytes, but the smallest candidate for a table of {rows:,} x {width:,} takes "
            f"{_smallest(rows, width) + exact:,} bytes."
        )
    return found


def _with_options(
    found: list[tuple[Method, StructureConfig]], options: dict[str, Any]
) -> list[tuple[Method, StructureConfig]]:
    """Set options in all candidates that have them; the others, and those that become alike, are left out."""
    set_in: dict[StructureConfig, Method] = {}
    for method, config in found:
        if options.keys() <= {field.name for field in dataclasses.fields(config)}:
            set_in.setdefault(dataclasses.replace(config, **options), method)
    if not set_in:
        methods = ", ".join(sorted({method.name for method, _ in found}))
        raise CompactConfigError(
            f"No candidate has the options {', '.join(map(repr, options))}; the candidates are of {methods}."
        )
    return [(method, config) for config, method in set_in.items()]


def _cheap(
    found: list[tuple[Method, StructureConfig]], settings: Mapping[str, Any]
) -> list[tuple[Method, StructureConfig]]:
    """Leave those that foresee their fit, if there are any, and put in settings that save time."""
    foreseen = [(method, config) for method, config in found if method.predict is not None]
    return [
        (method, dataclasses.replace(config, **of_fields(settings, type(config))))
        for method, config in foreseen or found
    ]


def _smallest(rows: int, width: int) -> int:
    """Return the least budget that has a candidate, to within a hundredth."""
    low, high = 1, rows * width * 4
    while high > low * 1.01 + 1:
        middle = (low + high) // 2
        some = any(method.candidates(rows, width, middle) for method in registered_methods())
        low, high = (low, middle) if some else (middle, high)
    return high
