"""The spectrum of a table, the root of a metric, and the least error that any code of a given rate can reach."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .reproducible import product_over_rows, symmetric_eigen

_ROWS_PER_CHUNK = 8192
_BISECTIONS = 200
# Of the mean eigenvalue: what a metric says at least of any direction, so that its root has an inverse.
_LEAST_COST = 1e-4


def covariance(table: Tensor, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return the mean (D,) and covariance (D, D) of rows (V, D), weighted by (V,), as float64.

    The rows are read in chunks, so the table is never copied as a whole.
    """
    total = torch.zeros((), dtype=torch.float64)
    mean = torch.zeros(table.shape[1], dtype=torch.float64)
    moment = torch.zeros(table.shape[1], table.shape[1], dtype=torch.float64)
    for start in range(0, len(table), _ROWS_PER_CHUNK):
        chunk = table[start : start + _ROWS_PER_CHUNK].detach().cpu().double()
        weight = torch.ones(len(chunk), dtype=torch.float64)
        if weights is not None:
            weight = weights[start : start + _ROWS_PER_CHUNK].detach().cpu().double()
        scaled = chunk * weight.unsqueeze(-1)
        total += weight.sum()
        mean += scaled.sum(0)
        moment += product_over_rows(scaled, chunk)
    mean /= total
    return mean, moment / total - torch.outer(mean, mean)


def metric_roots(metric: Tensor | None, width: int) -> tuple[Tensor, Tensor]:
    """Return the square root of a metric (D, D), made positive definite, and its inverse, float64.

    Plain distances between rows times the root are distances in the metric.
    """
    if metric is None:
        return torch.eye(width).double(), torch.eye(width).double()
    values, vectors = symmetric_eigen(metric.double())
    values = values / values.clamp(min=0.0).mean()
    values = values.clamp(min=_LEAST_COST)
    return (vectors * values.sqrt()) @ vectors.T, (vectors / values.sqrt()) @ vectors.T


def shannon_bound(eigenvalues: Tensor, bits_per_weight: float) -> float:
    """Return the relative MSE that a Gaussian source with these variances (D,) allows at a rate.

    Reverse water-filling: D(θ) = Σ min(θ, λ) at the level θ whose rate (1/D) Σ max(0, ½ log2(λ/θ)) is
    `bits_per_weight`.
    """
    variances = eigenvalues.double().clamp(min=0.0)
    total = float(variances.sum())
    if total == 0.0:
        return 0.0
    high = math.log(float(variances.max()))
    low = high - 2 * math.log(2) * (bits_per_weight * len(variances) + 64)
    logs = variances.clamp(min=torch.finfo(torch.float64).tiny).log()
    for _ in range(_BISECTIONS):
        level = (low + high) / 2
        rate = float((logs - level).clamp(min=0.0).sum()) / (2 * math.log(2)) / len(variances)
        low, high = (level, high) if rate > bits_per_weight else (low, level)
    return float(variances.clamp(max=math.exp(high)).sum()) / total


def gap_db(relative_mse: float, bound: float) -> float:
    """Return how far an error stands above a bound, in decibels."""
    if relative_mse == 0.0 or bound == 0.0:
        return 0.0 if relative_mse == bound else math.copysign(math.inf, relative_mse - bound)
    return 10 * math.log10(relative_mse / bound)
