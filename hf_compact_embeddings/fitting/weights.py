"""What rows weigh, and the axes that follow from it, in methods that cut rows into tiers."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from ..modeling.tiered import TieredConfig
from .methods import Need
from .principal_axes import PrincipalAxes, energies, principal_axes
from .source import FitSource

# Powers of the token frequency for bits and for axes, with and without an output head that scores through the table.
_POWERS = {False: (0.3, 0.75), True: (0.85, 1.0)}


@dataclasses.dataclass(frozen=True)
class TableWeights:
    """What rows weigh when bits are given out, and for axes, means and gains: both (V,)."""

    bits: Tensor
    axes: Tensor


def table_weights(options: TieredConfig, source: FitSource) -> TableWeights:
    """Return the weights of a source's rows by the powers that were asked for, or those that do best."""
    powers = zip((options.frequency_power, options.axis_power), _POWERS[source.tied], strict=True)
    bits, axes = (source.row_weights(default if given is None else given) for given, default in powers)
    bits = torch.ones(len(source.table)) if bits is None else bits
    return TableWeights(bits, bits if axes is None else axes)


def weighted_axes(options: TieredConfig, source: FitSource, weights: TableWeights) -> PrincipalAxes:
    """Return the principal axes in the metric that was asked for, or, by itself, the best that is known."""
    metric = source.metric_for(options.metric)
    return source.once(("axes", *_asked(options)), lambda: principal_axes(source.table, weights.axes, metric))


def row_energies(options: TieredConfig, source: FitSource, axes: PrincipalAxes) -> Tensor:
    """Return how far each row (V,) is from the mean on these axes, squared."""
    return source.once(("energies", *_asked(options)), lambda: energies(source.table, axes))


def counted_weights(source: FitSource) -> Tensor:
    """Return what rows weigh (V,) where errors are judged: as often as they are read."""
    weights = source.row_weights(1.0)
    return torch.ones(len(source.table)).double() if weights is None else weights.double()


def _asked(options: TieredConfig) -> tuple[object, ...]:
    """Return the options that axes depend on."""
    return options.frequency_power, options.axis_power, options.metric


def tiered_needs(options: TieredConfig) -> frozenset[Need]:
    """Return what fits read that weigh rows by their counts, in a metric."""
    return frozenset({"counts"} if options.metric == "plain" else {"counts", "sensitivity"})
