"""What a fit starts from: a dense table and what is known of its rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..modeling.errors import CompactConfigError, config_error
from .reproducible import total

_T = TypeVar("_T")
_FINITE = "all values are finite"


@dataclasses.dataclass(frozen=True)
class FitSource:
    """A dense table and what is known about its rows; tensors are moved to the CPU, and from there by chunks.

    Attributes:
        table: the rows to stand for (V, D).
        counts: how often each token occurs (V,), or None.
        multiplicity: how many rows of a larger table each row stands for (V,), or None for a whole table.
        features: states to cluster instead of the rows (V, H), or None.
        private_ids: sorted ids (m,) of rows that will be stored exactly, and need no fit.
        padding_idx: the padding row.
        scale: what looked-up rows are multiplied by.
        metric: what an error costs, as a positive semi-definite matrix (D, D), or None for plain distance.
        tied: whether an output head scores through the table: one that is tied to it, or one whose own it is.
        token_strings: how the tokens are written (V of them), for fits that read it, or None.
        max_bytes: what may be spent on all but the private rows, or None for no limit.
        seed: of all random choices.
        device: where to compute.
        findings: what several fits to this table find alike, with what it was found from; see `once`.
    """

    table: Tensor
    counts: Tensor | None = None
    multiplicity: Tensor | None = None
    features: Tensor | None = None
    metric: Tensor | None = None
    tied: bool = False
    token_strings: Sequence[str] | None = None
    private_ids: Tensor = dataclasses.field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    padding_idx: int | None = None
    scale: float = 1.0
    max_bytes: int | None = None
    seed: int = 0
    device: torch.device = dataclasses.field(default_factory=lambda: torch.device("cpu"))
    findings: dict[Hashable, tuple[tuple[Any, ...], Any]] = dataclasses.field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        """Check the table and that the rest fits to it."""
        for field in dataclasses.fields(self):
            given = getattr(self, field.name)
            if isinstance(given, Tensor):
                object.__setattr__(self, field.name, given.cpu())
        if self.table.ndim != 2 or 0 in self.table.shape:
            shape = tuple(self.table.shape)
            raise CompactConfigError(f"`table` has shape {shape}, but it must be 2-D and not empty.")
        self._require_finite_table()
        rows = self.table.shape[0]
        if self.counts is not None:
            if self.counts.shape != (rows,):
                shape = tuple(self.counts.shape)
                raise CompactConfigError(f"`token_counts` has shape {shape}, but the table has {rows:,} rows.")
            if not (self.counts >= 0).all() or not self.counts.isfinite().all():
                raise CompactConfigError("`token_counts` must be finite and not negative.")
        if self.features is not None and self.features.shape[0] != rows:
            raise CompactConfigError(f"`features` has {self.features.shape[0]:,} rows, the table {rows:,}.")

    def _require_finite_table(self) -> None:
        # Reading a large table takes a while, and a plan makes dozens of sources of one.
        known = self.findings.get(_FINITE)
        if known is not None and known[0][0] is self.table:
            return
        if not self.table.is_floating_point() or not all(chunk.isfinite().all() for chunk in self.table.split(8192)):
            raise CompactConfigError("`table` holds NaN or infinity, or no floats: nothing can stand for it.")
        self.findings[_FINITE] = ((self.table,), None)

    def metric_for(self, option: str) -> Tensor | None:
        """Return the metric of an option: none for "plain", what there is for "auto"; "sensitivity" must be had."""
        if option == "sensitivity" and self.metric is None:
            raise config_error("metric", option, "it needs a `tokenizer`, and a model that reads its tokens alone")
        return None if option == "plain" else self.metric

    def once(self, name: Hashable, find: Callable[[], _T]) -> _T:
        """Return what `find` gives; it is asked once by all fits that start from the same.

        `plan()` frames many candidates for one table, and the best of them is then fitted: they share axes and more.
        """
        start = (self.table, self.counts, self.multiplicity, self.metric, self.private_ids, self.tied, self.seed)
        known = self.findings.get(name)
        if known is None or not all(map(_is_same, known[0], start)):
            self.findings[name] = known = (start, find())
        return known[1]

    def row_weights(self, power: float) -> Tensor | None:
        """Return what each row weighs (V,): (count + 1)^power for each row that it stands for, 0 for private rows.

        None if all are equal.
        """
        rows = self.table.shape[0]
        if self.private_ids.numel() >= rows:
            return None
        if self.counts is None and self.multiplicity is None and self.private_ids.numel() == 0:
            return None
        counts = torch.zeros(rows) if self.counts is None else self.counts.float()
        weights = (counts + 1.0) ** power
        if self.multiplicity is not None:
            weights *= self.multiplicity
        weights[self.private_ids] = 0.0
        return weights / (float(total(weights)) / rows)


def _is_same(one: Any, other: Any) -> bool:
    """Whether two things that a fit starts from are the same."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one is other or torch.equal(one, other)
    return type(one) is type(other) and one == other
