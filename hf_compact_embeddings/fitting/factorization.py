"""Low rank in closed form: principal axes of a table, the codes of its rows, and codes in 8 bits."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from ..modeling.errors import CompactConfigError, config_error
from .reproducible import product_over_rows, symmetric_eigen, total

# What the direction-aware loss adds to |ê - e|, whose power has no slope at zero.
POWER_EPSILON = 1e-10

_ROWS_PER_CHUNK = 8192
# A direction that is hardly met at first must not drown all others in the next round.
_LEAST_COSINE = 0.05
# Of the mean row norm: the code of a row that equals the bias, which only zero rows may code as zero.
_SMALLEST_CODE = 1e-3
# Of the mean row norm: shorter rows are zero but for rounding, and point nowhere.
_SMALLEST_ROW = 1e-6
_INT8_LEVELS = 127
_FLOAT16_TINY = 2.0**-24
_FLOAT16_MAX = 65504.0
_TINY = torch.finfo(torch.float64).tiny


@dataclasses.dataclass(frozen=True)
class HiddenLayer:
    """The non-linear part of a decoder: ELU(z · weight + bias) · decoder, added to the linear part.

    Attributes:
        weight: (k, H).
        bias: (H,).
        decoder: (H, D).
    """

    weight: Tensor
    bias: Tensor
    decoder: Tensor


@dataclasses.dataclass(frozen=True)
class Factors:
    """A table (V, D) as codes and a decoder: row = (code · decoder + bias [+ hidden layer]) · row scale.

    A code that is all zero decodes to the zero vector, whatever the bias; no other row has one.

    Attributes:
        codes: (V, k).
        decoder: (k, D).
        bias: (D,), or None.
        hidden: the non-linear part of the decoder, or None.
        row_scales: (V,), or None.
    """

    codes: Tensor
    decoder: Tensor
    bias: Tensor | None = None
    hidden: HiddenLayer | None = None
    row_scales: Tensor | None = None

    def decode(self, start: int = 0, stop: int | None = None) -> Tensor:
        """Decode the rows from `start` up to `stop` (n, D)."""
        codes = self.codes[start:stop]
        rows = codes @ self.decoder if self.bias is None else torch.addmm(self.bias, codes, self.decoder)
        if self.hidden is not None:
            activation = F.elu(torch.addmm(self.hidden.bias, codes, self.hidden.weight))
            rows.addmm_(activation, self.hidden.decoder)
        if self.row_scales is not None:
            rows *= self.row_scales[start:stop, None]
        return rows.mul_(codes.any(dim=-1, keepdim=True))


@dataclasses.dataclass(frozen=True)
class FitMeasures:
    """How well factors stand for a table. All but the last leave zero rows out, and are weighted.

    Attributes:
        mean_cosine: between decoded rows and rows.
        mean_power: of |ê - e|, to an exponent.
        rmse: root of the mean square of ê - e.
        relative_mse: Σ|ê - e|² / Σ|e - ē|², all rows equal.
    """

    mean_cosine: float
    mean_power: float
    rmse: float
    relative_mse: float


def row_chunks(table: Tensor, device: torch.device | None = None) -> Iterator[tuple[slice, Tensor]]:
    """Yield a table (V, D) in order, some rows at a time, as float32 on the device."""
    for start in range(0, len(table), _ROWS_PER_CHUNK):
        rows = slice(start, start + _ROWS_PER_CHUNK)
        yield rows, table[rows].detach().to(device=device, dtype=torch.float32)


def row_norms(table: Tensor, device: torch.device | None = None) -> Tensor:
    """Return the Euclidean norm of every row (V,), as float32 on the device."""
    norms = torch.cat([torch.linalg.vector_norm(rows, dim=1) for _, rows in row_chunks(table, device)])
    if not bool(norms.isfinite().all()):
        raise CompactConfigError(
            f"`table` holds NaN or infinity, first in row {int((~norms.isfinite()).nonzero()[0])}."
        )
    return norms


def has_direction(norms: Tensor) -> Tensor:
    """Return which rows are not zero (V,), as bool, from their norms (V,)."""
    return norms > _SMALLEST_ROW * _mean(norms)


def principal_axes(
    table: Tensor,
    rank: int,
    weights: Tensor | None = None,
    centred: bool = True,
    device: torch.device | None = None,
) -> tuple[Tensor, Tensor]:
    """Find the subspace that leaves the least weighted squared error.

    The table is read in chunks, and never copied as a whole: the axes are the eigenvectors of its (D, D) moments.

    Args:
        table: (V, D).
        rank: k, the number of axes.
        weights: what each row's squared error counts (V,), or None for equal weights.
        centred: whether the axes start at the weighted mean of the rows rather than at zero.
        device: where to compute.

    Returns:
        Orthonormal axes (k, D), longest first, and the centre (D,), both float32.
    """
    device = table.device if device is None else device
    roots = _root_weights(table, weights, device)
    width = table.shape[1]
    centre = torch.zeros(width, dtype=torch.float64, device=device)
    if centred:
        for rows, chunk in row_chunks(table, device):
            centre += product_over_rows(roots[rows].square(), chunk)
    shift = centre.float()
    moments = torch.zeros(width, width, dtype=torch.float64, device=device)
    for rows, chunk in row_chunks(table, device):
        scaled = (chunk - shift).mul_(roots[rows, None])
        moments += product_over_rows(scaled, scaled)
    axes = symmetric_eigen(moments)[1][:, -rank:].flip(1).T
    # The sign of an axis is arbitrary; fixing it makes fits comparable between machines.
    largest = axes.gather(1, axes.abs().argmax(dim=1, keepdim=True))
    return (axes * largest.sign()).float().contiguous(), shift


def direction_axes(
    table: Tensor,
    rank: int,
    weights: Tensor | None = None,
    rounds: int = 2,
    device: torch.device | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Find the subspace that leaves the highest weighted mean cosine, by reweighted principal axes.

    The mean cosine is Σ w·|Pu| for directions u and the projection P: its gradient is that of the squared error
    of the directions with weights w / |Pu|, so each round solves that in closed form. Zero rows have no say.

    Args:
        table: (V, D).
        rank: k, the number of axes.
        weights: what each row's cosine counts (V,), or None for equal weights.
        rounds: how often to weigh anew; two come within 1e-4 of where it settles.
        device: where to compute.

    Yields:
        Axes (k, D) and centre (D,) as `principal_axes` returns them: `rounds` + 1 pairs, the best so far.
    """
    norms = row_norms(table, device)
    base = torch.where(has_direction(norms), norms.double().square().reciprocal(), 0.0)
    shares = has_direction(norms).double()
    if weights is not None:
        base *= weights.to(base)
        shares *= weights.to(base)
    current, highest = base, -math.inf
    for _ in range(rounds + 1):
        axes, centre = principal_axes(table, rank, current, device=device)
        cosines = torch.empty_like(norms)
        for rows, chunk in row_chunks(table, device):
            decoded = torch.addmm(centre, (chunk - centre) @ axes.T, axes)
            cosines[rows] = F.cosine_similarity(decoded, chunk, dim=1)
        reached = float(total(shares * cosines))
        if reached > highest:
            best, highest = (axes, centre), reached
        yield best
        # Where two axes are about as good, whole steps would swap them forever: go half of the way.
        current = (current * base / cosines.clamp_(min=_LEAST_COSINE)).sqrt_()


def project_rows(table: Tensor, axes: Tensor, centre: Tensor | None, norms: Tensor) -> Tensor:
    """Return the codes (V, k) of all rows: their coordinates on the axes (k, D), from the centre (D,).

    They are where `norms` (V,), the norms of the rows, is; zero rows get the code that is all zero.
    """
    codes = torch.empty(len(table), len(axes), device=norms.device)
    for rows, chunk in row_chunks(table, norms.device):
        codes[rows] = (chunk if centre is None else chunk - centre) @ axes.T
    return mark_zero_rows(codes, norms)


def mark_zero_rows(codes: Tensor, norms: Tensor) -> Tensor:
    """Give zero rows, and no others, the code that is all zero; works in place on codes (V, k)."""
    present = has_direction(norms)
    codes[~present] = 0.0
    codes[present & ~codes.any(dim=1), 0] = _SMALLEST_CODE * _mean(norms)
    return codes


def fit_svd(
    table: Tensor,
    rank: int,
    weights: Tensor | None = None,
    centred: bool = True,
    device: torch.device | None = None,
) -> Factors:
    """Return the factors with the least weighted squared error: the truncated SVD of the (centred) table.

    Args:
        table: (V, D).
        rank: k.
        weights: what each row's squared error counts (V,), e.g. a power of token frequency.
        centred: whether the factors have a bias, the weighted mean of the rows that are not zero.
        device: where to compute.
    """
    check_rank(rank, table.shape[1])
    norms = row_norms(table, device)
    present = has_direction(norms)
    if not bool(present.all()):
        weights = present.float() if weights is None else present * weights.to(norms)
    axes, centre = principal_axes(table, rank, weights, centred, device)
    bias = centre if centred else None
    return Factors(project_rows(table, axes, bias, norms), axes, bias)


def with_row_norms(table: Tensor, factors: Factors) -> Factors:
    """Return the factors with row scales that give each decoded row the norm of its row in the table (V, D)."""
    plain = dataclasses.replace(factors, row_scales=None)
    scales = torch.empty(len(table), device=factors.codes.device)
    for rows, chunk in row_chunks(table, factors.codes.device):
        decoded = torch.linalg.vector_norm(plain.decode(rows.start, rows.stop), dim=1)
        wanted = torch.linalg.vector_norm(chunk, dim=1)
        scales[rows] = torch.where(decoded > 0, wanted / decoded, 0.0).clamp_(max=_FLOAT16_MAX)
    return dataclasses.replace(factors, row_scales=scales)


def measure_fit(table: Tensor, factors: Factors, exponent: float = 0.1, weights: Tensor | None = None) -> FitMeasures:
    """Measure factors against the table (V, D), by default with the last exponent of the paper's power term."""
    device = factors.codes.device
    norms = row_norms(table, device)
    shares = has_direction(norms).double()
    if weights is not None:
        shares *= check_weights(weights, table).to(shares)
    shares /= total(shares).clamp(min=_TINY)
    mean = torch.stack([rows.double().sum(dim=0) for _, rows in row_chunks(table, device)]).sum(dim=0) / len(table)
    cosine, power, square, error, spread = torch.zeros(5, dtype=torch.float64, device=device).unbind()
    for rows, chunk in row_chunks(table, device):
        decoded = factors.decode(rows.start, rows.stop)
        cosine += shares[rows] @ F.cosine_similarity(decoded, chunk, dim=1).double()
        spread += (chunk - mean.float()).square().sum(dtype=torch.float64)
        difference = decoded.sub_(chunk)
        squares = difference.square().mean(dim=1).double()
        error += squares.sum() * table.shape[1]
        square += shares[rows] @ squares
        power += shares[rows] @ difference.abs_().add_(POWER_EPSILON).pow_(exponent).mean(dim=1).double()
    return FitMeasures(float(cosine), float(power), float(square.sqrt()), float(error / spread.clamp(min=_TINY)))


def quantise_rows(codes: Tensor) -> tuple[Tensor, Tensor]:
    """Round codes (V, k) to int8, with a float16 scale (V,) for each row; only zero rows become zero."""
    largest = codes.float().abs().amax(dim=1)
    if not bool((largest <= _INT8_LEVELS * _FLOAT16_MAX).all()):
        raise CompactConfigError("`codes` are too large, or not finite: their int8 scale does not fit into float16.")
    scales = (largest / _INT8_LEVELS).clamp(min=_FLOAT16_TINY).half()
    # Rounded by the scale as stored, which can be a little less than the largest code asks for.
    steps = codes.float() / scales.float().unsqueeze(1)
    return steps.round_().clamp_(-_INT8_LEVELS, _INT8_LEVELS).to(torch.int8), scales


def dequantise_rows(quantised: Tensor, scales: Tensor) -> Tensor:
    """Return the codes (..., k), as float32, of int8 rows (..., k) and their scales (...)."""
    return quantised.float() * scales.float().unsqueeze(-1)


def check_rank(rank: int, width: int) -> None:
    """Raise unless a table of `width` columns has a smaller stand-in of that rank."""
    if isinstance(rank, bool) or not isinstance(rank, int) or not 1 <= rank < width:
        raise config_error("rank", rank, f"it must be a whole number from 1 to {width - 1:,}, below the table's width")


def check_weights(weights: Tensor, table: Tensor) -> Tensor:
    """Return the weights if there is a finite one, not negative, for each row of the table; else raise."""
    if weights.shape != (len(table),) or not bool(((weights >= 0) & weights.isfinite()).all()):
        raise CompactConfigError(f"`weights` must be {len(table):,} finite numbers, none negative.")
    return weights


def _mean(norms: Tensor) -> float:
    return float(total(norms)) / len(norms)


def _root_weights(table: Tensor, weights: Tensor | None, device: torch.device) -> Tensor:
    """Return the square roots of the weights (V,), scaled to sum to 1 when squared."""
    if weights is None:
        return torch.full((len(table),), len(table) ** -0.5, device=device)
    checked = check_weights(weights, table).to(device=device, dtype=torch.float64)
    return (checked / total(checked).clamp(min=_TINY)).sqrt().float()
