"""plan(): from a budget to options, best first, judged on a sample of the table."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .checkpoints import load_dense
from .effort import of_fields
from .evidence import Evidence, gather, read_texts
from .fitting import FitSource, Method, fit_structure, registered_methods
from .fitting.methods import stored_bytes
from .fitting.spectrum import covariance, gap_db, metric_roots, shannon_bound
from .modeling.architectures import find_input_table
from .modeling.errors import CompactConfigError, config_error
from .modeling.options import BUDGETS, StructureConfig
from .modeling.structure import CompactEmbedding, private_row_bytes
from .progress import report, stage, steps

_SAMPLE_ROWS = 8192
_HEAD_TRIALS = 5


@dataclasses.dataclass(frozen=True)
class Plan:
    """Options that keep a budget.

    Attributes:
        config: give it to `compress()`.
        bytes: what it takes, exactly, rows kept exactly included.
        ratio: dense over compact bytes.
        predicted_error: the relative MSE that a full fit is expected to leave, weighted by token frequency
            where counts are known.
        bound: the relative MSE that a Gaussian source allows at this rate.
        gap_db: predicted_error over bound, in decibels.
        head_cost: time to score one hidden state against all tokens, over that of a dense head, measured here on a
            sample of the rows; None where the head is not tied.
    """

    config: StructureConfig
    bytes: int
    ratio: float
    predicted_error: float
    bound: float
    gap_db: float
    head_cost: float | None

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as plain JSON."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {**values, "config": self.config.to_dict()}


def plan(
    model: PreTrainedModel | str | Path,
    *,
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
        evidence = gather(
            model,
            find_input_table(model),
            tokenizer=tokenizer,
            token_counts=token_counts,
            texts=texts,
            languages=languages,
            seed=seed,
        )
        with stage("Planning"):
            return plan_for(
                evidence,
                ratio=ratio,
                max_bytes=max_bytes,
                bits_per_weight=bits_per_weight,
                private_rows=private_rows,
                tied=tied,
                **options,
            )


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
    sample = _Sample(dataclasses.replace(source, tied=bool(tied)))
    plans = []
    for method, config in steps(found, "Judging candidates"):
        size, error, structure = sample.predict(method, config)
        # Options that were asked for may need more than what the candidate was made for.
        if size > budget:
            continue
        bound = shannon_bound(sample.eigenvalues, 8 * size / weight.numel())
        cost = _head_cost(structure) if tied else None
        plans.append(Plan(config, size, weight.nbytes / size, error, bound, gap_db(error, bound), cost))
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


@torch.no_grad()
def _head_cost(structure: CompactEmbedding) -> float:
    """Return the time of scoring one hidden state, over that of a product with the dense rows."""
    dense = structure.dense()
    hidden = torch.ones(1, structure.embedding_dim)
    # The time of this thread alone, where it is told finely enough: other programs take none of it.
    fine = time.get_clock_info("thread_time").resolution < 1e-6
    clock = time.thread_time if fine else time.perf_counter

    def seconds(score: Any) -> float:
        start = clock()
        score()
        return clock() - start

    trials = [
        (seconds(lambda: structure.project(hidden)), seconds(lambda: hidden @ dense.T)) for _ in range(_HEAD_TRIALS)
    ]
    compact, plain = map(min, zip(*trials, strict=True))
    return compact / plain


class _Sample:
    """Some rows of a table, on which candidates are fitted to see how they would do on all of them.

    Where counts are known, the rows that weigh most are all in it: a few of them often weigh more than all others. The
    others are drawn at random, and each stands for several.
    """

    def __init__(self, source: FitSource) -> None:
        table, counts, private_ids, seed = source.table, source.counts, source.private_ids, source.seed
        self.rows = len(table)
        weights = FitSource(table, counts=counts).row_weights(1.0)
        weights = torch.ones(self.rows) if weights is None else weights
        mean, spread = covariance(table, weights)
        # Errors are compared in the metric of the fit, which sees a table (V, D) as its product with the metric's root.
        self.root = None if source.metric is None else metric_roots(source.metric, table.shape[1])[0]
        spread = spread if self.root is None else self.root @ spread @ self.root
        self.eigenvalues = torch.linalg.eigvalsh(spread).clamp(min=0.0)
        self.source = dataclasses.replace(source, max_bytes=None)
        self.ids, self.multiplicity = _draw(weights if counts is not None else None, self.rows, seed)
        self.exact = torch.isin(self.ids, private_ids)
        self.table = table[self.ids].float()
        self.counts = None if counts is None else counts[self.ids]
        self.weights = weights[self.ids].double()
        self.energy = self._lengths(self.table.double() - mean)
        # Fits weigh by about the root of the counts.
        self.fit_weights = self.weights.sqrt() * self.multiplicity
        self.effective_rows = _effective_rows(weights.double().sqrt())

    @torch.no_grad()
    def predict(self, method: Method, options: StructureConfig) -> tuple[int, float, CompactEmbedding]:
        """Return the bytes of a fit to the whole table, the relative MSE to expect of it, and a fit to the sample.

        Some methods know. Else: the more rows share the same tables, the worse they are served, so that the error of
        a fit to N rows grows about as e - c / N. Fits to the sample and to half of it give e and c.
        """
        width = self.table.shape[1]
        exact = options.private_rows * private_row_bytes(options, width)
        if method.predict is not None:
            ids, position = self.ids.sort()
            budget = options.budget(self.rows, width)
            left = None if budget is None else budget - exact
            size, structure = method.predict(options, dataclasses.replace(self.source, max_bytes=left), ids)
            return size + exact, self._relative_error(structure.dense()[position.argsort()]), structure
        layout = method.structure.layout_for(options, self.rows, width)
        stored = stored_bytes(options, layout, width) + exact
        size = len(self.table)
        structure = self._fitted(options, size)
        error = self._relative_error(structure.dense())
        if size == self.rows:
            return stored, error, structure
        grown = max(0.0, error - self._relative_error(self._fitted(options, size // 2).dense()))
        half, whole = _effective_rows(self.fit_weights[: size // 2]), _effective_rows(self.fit_weights)
        return stored, error + grown * _share_to_come(1 / half, 1 / whole, 1 / self.effective_rows), structure

    def _fitted(self, options: StructureConfig, size: int) -> CompactEmbedding:
        """Return a fit to the first rows of the sample, none of them private."""
        counts = None if self.counts is None else self.counts[:size]
        source = FitSource(
            self.table[:size],
            counts=counts,
            multiplicity=None if counts is None else self.multiplicity[:size],
            metric=self.source.metric,
            tied=self.source.tied,
            seed=self.source.seed,
        )
        return fit_structure(dataclasses.replace(options, private_rows=0), source)

    def _relative_error(self, decoded: Tensor) -> float:
        """Compare decoded rows with the first rows of the sample; those that are kept exactly have no error."""
        size = len(decoded)
        error = self._lengths(decoded.double() - self.table[:size].double()).masked_fill(self.exact[:size], 0.0)
        weights = self.weights[:size] * self.multiplicity[:size]
        return float((weights * error).sum() / (weights * self.energy[:size]).sum())

    def _lengths(self, errors: Tensor) -> Tensor:
        """Return the squared lengths (n,) of errors (n, D), in the metric of the fit."""
        return (errors if self.root is None else errors @ self.root).square().sum(1)


def _draw(weights: Tensor | None, rows: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return ids of a sample (n,), so that its first half is a sample too, and how many rows each stands for (n,)."""
    size = min(rows, _SAMPLE_ROWS)
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
    if weights is None or size == rows:
        return order[:size], torch.full((size,), rows / size)
    heavy = weights[order].argsort(descending=True, stable=True)[: size // 2].sort().values
    others = torch.ones(rows, dtype=torch.bool).index_fill(0, heavy, False).nonzero().squeeze(1)[: size - size // 2]
    chosen = torch.cat([heavy, others])
    multiplicity = torch.ones(size)
    multiplicity[len(heavy) :] = (rows - len(heavy)) / len(others)
    mixed = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
    return order[chosen[mixed]], multiplicity[mixed]


def _effective_rows(weights: Tensor) -> float:
    """Return how many rows of equal weight would say as much as rows of these weights (n,)."""
    return float(weights.sum().square() / weights.square().sum())


def _share_to_come(half: float, whole: float, table: float) -> float:
    """Return how much an error still grows from sample to table, for what it grew from half of the sample to all.

    Args:
        half: one over the effective rows of half of the sample.
        whole: the same of the sample.
        table: the same of the table.
    """
    if half <= whole:
        # A few rows that weigh nearly everything are in one half: the halves do not tell how errors grow.
        return 0.0
    return min(1.0, max(0.0, (whole - table) / (half - whole)))
