"""What candidates of a plan would leave of a table's energy: some rows are coded, and the rest is worked out."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from .fitting import FitSource, Method, fit_structure
from .fitting.methods import Prediction, private_row_bytes, stored_bytes
from .fitting.spectrum import covariance, metric_roots
from .modeling.errors import CompactConfigError
from .modeling.options import StructureConfig
from .modeling.structure import CompactEmbedding
from .progress import step

# Of a table that is fitted to, and of one whose plan is known and only has to be tried.
_FITTED_ROWS, _CODED_ROWS = 8192, 2048
# A first look, at so small a part of the former, tells which candidates are hopeless.
_FIRST_LOOK = 4
# How much more error than the best has who cannot win: 1 dB by a fit to few rows, 1.5 dB by a cost model alone.
_HOPELESS, _HOPELESS_BY_MODEL = 10**0.1, 10**0.15
_HEAD_TRIALS = 5


@dataclasses.dataclass(frozen=True)
class Judged:
    """A candidate, and what was found of it; see `Plan`."""

    config: StructureConfig
    bytes: int
    error: float
    head_cost: float | None = None
    rough: bool = False


class Judge:
    """Judges candidates for one table, within a budget.

    Errors are relative MSE in the metric of the fit, rows weighing by their counts where these are known.
    """

    def __init__(self, source: FitSource, budget: int) -> None:
        """Draw the rows to try candidates on."""
        table, counts = source.table, source.counts
        weights = FitSource(table, counts=counts).row_weights(1.0)
        weights = torch.ones(len(table)) if weights is None else weights
        mean, spread = covariance(table, weights)
        # A fit sees a table (V, D) as its product with the metric's root.
        root = None if source.metric is None else metric_roots(source.metric, table.shape[1])[0]
        spread = spread if root is None else root @ spread @ root
        self.eigenvalues = torch.linalg.eigvalsh(spread).clamp(min=0.0)
        self.source, self.budget = dataclasses.replace(source, max_bytes=None), budget
        given = None if counts is None else weights

        def sample(size: int) -> _Sample:
            return _Sample(self.source, weights, *_draw(given, len(table), source.seed, size), mean, root)

        self.fitted = sample(_FITTED_ROWS)
        # What scoring costs shows on many rows.
        self.coded = self.fitted if source.tied else sample(_CODED_ROWS)
        # Fits weigh by about the root of the counts.
        self.effective_rows = _effective_rows(weights.double().sqrt())

    def judged(self, candidates: Sequence[tuple[Method, StructureConfig]]) -> Iterator[Judged]:
        """Yield those candidates that keep the budget: first those that plan for themselves, the likeliest first."""
        with step("Judging candidates", len(candidates)) as progress:
            foreseen = [
                (config, self._foreseen(method, config)) for method, config in candidates if method.predict is not None
            ]
            # Options that were asked for may need more than what the candidate was made for.
            within = [found for found in foreseen if found[1].bytes <= self.budget]
            within.sort(key=lambda found: found[1].expected_error)
            progress.update(len(foreseen) - len(within))
            least = None
            for config, prediction in within:
                judged = self._tried(config, prediction, within[0][1], least)
                least = judged.error if least is None else min(least, judged.error)
                progress.update()
                yield judged
            for method, config in candidates:
                if method.predict is not None:
                    continue
                size = self._stored(method, config)
                if size <= self.budget:
                    judged = self._fitted(config, size, least)
                    least = judged.error if least is None else min(least, judged.error)
                    yield judged
                progress.update()

    def _foreseen(self, method: Method, config: StructureConfig) -> Prediction:
        """Let a method plan within what rows that are kept exactly leave of a budget; the result counts them in."""
        rows, width = self.source.table.shape
        exact = config.private_rows * private_row_bytes(config, width)
        budget = config.budget(rows, width)
        left = None if budget is None else budget - exact
        assert method.predict is not None
        found = method.predict(config, dataclasses.replace(self.source, max_bytes=left))
        return dataclasses.replace(found, bytes=found.bytes + exact)

    @torch.no_grad()
    def _tried(
        self, config: StructureConfig, prediction: Prediction, likeliest: Prediction, least: float | None
    ) -> Judged:
        """Code some rows by a method's own plan; what the likeliest candidate left tells of one without a chance."""
        share = prediction.expected_error / max(likeliest.expected_error, 1e-300)
        if least is not None and share > _HOPELESS_BY_MODEL and not self.source.tied:
            return Judged(config, prediction.bytes, min(1.0, least * share), rough=True)
        ids, position = self.coded.ids.sort()
        structure = prediction.coded(ids)
        error = self.coded.relative_error(structure.dense()[position.argsort()])
        return Judged(config, prediction.bytes, error, self._head_cost(structure))

    def _stored(self, method: Method, config: StructureConfig) -> int:
        rows, width = self.source.table.shape
        layout = method.structure.layout_for(config, rows, width)
        return stored_bytes(config, layout, width) + config.private_rows * private_row_bytes(config, width)

    @torch.no_grad()
    def _fitted(self, config: StructureConfig, taken: int, least: float | None) -> Judged:
        """Fit to a sample, and work out what a fit to the whole table would leave.

        The more rows share the same tables, the worse they are served. So a fit to few rows that leaves far more than
        the least error so far is enough.
        """
        size = len(self.fitted.ids)
        if least is not None and not self.source.tied and size >= _FITTED_ROWS:
            # Some codebooks have more entries than a first look has rows.
            with contextlib.suppress(CompactConfigError):
                error, least_error, _ = self._extrapolated(config, size // _FIRST_LOOK)
                if least_error > _HOPELESS * least:
                    return Judged(config, taken, error, rough=True)
        error, _, structure = self._extrapolated(config, size)
        return Judged(config, taken, error, self._head_cost(structure))

    def _extrapolated(self, config: StructureConfig, size: int) -> tuple[float, float, CompactEmbedding]:
        """Return the error to expect for the whole table, that of a fit to `size` rows of the sample, and that fit.

        The error of a fit to N rows grows about as e - c / N. Fits to the rows and to half of them give e and c.
        """
        sample = self.fitted
        structure = sample.fit(config, size)
        error = sample.relative_error(structure.dense())
        if size == len(self.source.table):
            return error, error, structure
        grown = max(0.0, error - sample.relative_error(sample.fit(config, size // 2).dense()))
        weights = sample.weights.sqrt() * sample.multiplicity
        half, whole = _effective_rows(weights[: size // 2]), _effective_rows(weights[:size])
        to_come = _share_to_come(1 / half, 1 / whole, 1 / self.effective_rows)
        return error + grown * to_come, error, structure

    def _head_cost(self, structure: CompactEmbedding) -> float | None:
        return head_cost(structure) if self.source.tied else None


class _Sample:
    """Some rows of a table, and how an error in them counts."""

    def __init__(
        self,
        source: FitSource,
        weights: Tensor,
        ids: Tensor,
        multiplicity: Tensor,
        mean: Tensor,
        root: Tensor | None,
    ) -> None:
        self.source, self.ids, self.multiplicity, self.root = source, ids, multiplicity, root
        self.exact = torch.isin(ids, source.private_ids)
        self.table = source.table[ids].float()
        self.weights = weights[ids].double()
        self.energy = self._lengths(self.table.double() - mean)

    def fit(self, options: StructureConfig, size: int) -> CompactEmbedding:
        """Return a fit to the first rows of the sample, none of them private."""
        counts = self.source.counts
        source = FitSource(
            self.table[:size],
            counts=None if counts is None else counts[self.ids[:size]],
            multiplicity=None if counts is None else self.multiplicity[:size],
            metric=self.source.metric,
            tied=self.source.tied,
            seed=self.source.seed,
        )
        return fit_structure(dataclasses.replace(options, private_rows=0), source)

    def relative_error(self, decoded: Tensor) -> float:
        """Compare decoded rows with the first rows of the sample; those that are kept exactly have no error."""
        size = len(decoded)
        error = self._lengths(decoded.double() - self.table[:size].double()).masked_fill(self.exact[:size], 0.0)
        weights = self.weights[:size] * self.multiplicity[:size]
        return float((weights * error).sum() / (weights * self.energy[:size]).sum())

    def _lengths(self, errors: Tensor) -> Tensor:
        """Return the squared lengths (n,) of errors (n, D), in the metric of the fit."""
        return (errors if self.root is None else errors @ self.root).square().sum(1)


@torch.no_grad()
def head_cost(structure: CompactEmbedding) -> float:
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


def _draw(weights: Tensor | None, rows: int, seed: int, most: int) -> tuple[Tensor, Tensor]:
    """Return ids of a sample (n,), so that its first half is a sample too, and how many rows each stands for (n,).

    Where weights are known, the rows that weigh most are all in it: a few of them often weigh more than all others. The
    others are drawn at random, and each stands for several.
    """
    size = min(rows, most)
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
