"""What a fit starts from, and the registry of the functions that fit."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..modeling.errors import CompactConfigError, config_error
from ..modeling.structure import CompactEmbedding, StructureConfig, structure_class_of


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
        tied: whether an output head scores through the table.
        token_strings: how the tokens are written (V of them), for fits that read it, or None.
        seed: of all random choices.
        device: where to compute.
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
    seed: int = 0
    device: torch.device = dataclasses.field(default_factory=lambda: torch.device("cpu"))

    def __post_init__(self) -> None:
        """Check the table and that the rest fits to it."""
        for field in dataclasses.fields(self):
            given = getattr(self, field.name)
            if isinstance(given, Tensor):
                object.__setattr__(self, field.name, given.cpu())
        if self.table.ndim != 2 or 0 in self.table.shape:
            shape = tuple(self.table.shape)
            raise CompactConfigError(f"`table` has shape {shape}, but it must be 2-D and not empty.")
        if not self.table.is_floating_point() or not all(chunk.isfinite().all() for chunk in self.table.split(8192)):
            raise CompactConfigError("`table` holds NaN or infinity, or no floats: nothing can stand for it.")
        rows = self.table.shape[0]
        if self.counts is not None:
            if self.counts.shape != (rows,):
                shape = tuple(self.counts.shape)
                raise CompactConfigError(f"`token_counts` has shape {shape}, but the table has {rows:,} rows.")
            if not (self.counts >= 0).all() or not self.counts.isfinite().all():
                raise CompactConfigError("`token_counts` must be finite and not negative.")
        if self.features is not None and self.features.shape[0] != rows:
            raise CompactConfigError(f"`features` has {self.features.shape[0]:,} rows, the table {rows:,}.")

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
        return weights / weights.mean()


Fitter = Callable[[Any, FitSource], CompactEmbedding]
_FITTERS: dict[str, Fitter] = {}
_F = TypeVar("_F", bound=Fitter)


def fits(config_class: type[StructureConfig]) -> Callable[[_F], _F]:
    """Register the function that fits a method's structure to a table."""

    def register(function: _F) -> _F:
        _FITTERS[config_class.method] = function
        return function

    return register


# From a configuration, a source and ids (n,): the bytes of a full fit without private rows, and rows (n, D) as it
# would decode them.
Predictor = Callable[[Any, FitSource, Tensor], tuple[int, Tensor]]
_PREDICTORS: dict[str, Predictor] = {}
_P = TypeVar("_P", bound=Predictor)


def predicts(config_class: type[StructureConfig]) -> Callable[[_P], _P]:
    """Register a function that knows what a full fit gives without doing it; a method need not have one."""

    def register(function: _P) -> _P:
        _PREDICTORS[config_class.method] = function
        return function

    return register


def predictor_of(config: StructureConfig) -> Predictor | None:
    """Return the method's registered predictor."""
    return _PREDICTORS.get(config.method)


# Chooses the codes of a structure anew, in place, so that its coded rows come as near as they can to given ones (n, D),
# all else staying as it is; returns which rows have other codes now (n,).
Recoder = Callable[[Any, Tensor], Tensor]
_RECODERS: dict[str, Recoder] = {}
_R = TypeVar("_R", bound=Recoder)


def recodes(config_class: type[StructureConfig]) -> Callable[[_R], _R]:
    """Register a function that chooses codes anew; a method without one has codes that never move."""

    def register(function: _R) -> _R:
        _RECODERS[config_class.method] = function
        return function

    return register


def recoder_of(structure: CompactEmbedding) -> Recoder | None:
    """Return the method's registered recoder, if this structure stores codes."""
    return None if getattr(structure, "codes", None) is None else _RECODERS.get(structure.config.method)


@torch.no_grad()
def fit_structure(config: StructureConfig, source: FitSource) -> CompactEmbedding:
    """Return a structure that stands for the source's table, rounded to its storage dtype."""
    if config.init == "random":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(source.seed)
            return empty_structure(config, source).start_from_random()
    structure = _FITTERS[config.method](config, source)
    if source.private_ids.numel():
        structure.set_private_rows(source.private_ids, source.table[source.private_ids].float())
    structure.round_to_storage()
    for name, parameter in structure.named_parameters():
        if not parameter.isfinite().all():
            raise config_error(
                "storage_dtype", config.storage_dtype, f"`{name}` would hold values beyond it: take bfloat16 or float32"
            )
    return structure


def empty_structure(config: StructureConfig, source: FitSource) -> CompactEmbedding:
    """Return the structure of a configuration for the source's table, without values."""
    rows, width = source.table.shape
    return structure_class_of(config)(config, rows, width, source.padding_idx, source.scale)
