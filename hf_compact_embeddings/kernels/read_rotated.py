"""`rotated` tables, read by compiled loops: look-up and scores without a plain tensor of windows."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..modeling.structure_rotated import RotatedEmbedding
from ..modeling.trellis_codes import MAX_BITS, reproduction_values
from .threads import shared_out
from .tiered import ROWS_OF_A_TILE, agrees, basis_of, first_bytes, places_of, turned_back
from .trellis_loops import QUERIES, Rings, add_centres, decode, ring_places, score


@dataclasses.dataclass(frozen=True)
class _Plan:
    """What all calls read beside the table's own tensors.

    Attributes:
        rings: where axes lie in rows.
        axes: the axis of each entry of the rings (P,).
        places: the same in a flat table (T, r) (P,).
        widths: how many of the first axes a tier has values on, in each tier.
    """

    rings: Rings
    axes: Tensor
    places: Tensor
    widths: tuple[int, ...]


def _plan_of(table: RotatedEmbedding) -> _Plan | None:
    tables = (table.axis_bits, table.codes, table.tier_index)
    return table.known("windows", tables, functools.partial(_read_plan, table))


def _read_plan(table: RotatedEmbedding) -> _Plan | None:
    """Return where everything is, or None if it contradicts itself: nothing checks it at the calls."""
    layout, rank = table.layout, table.layout.rank
    bits_fit = table.axis_bits.sum(1).tolist() == [8 * size for size in layout.tier_bytes]
    if not agrees(table) or not bits_fit or int(table.axis_bits.amax() if rank else 0) > MAX_BITS:
        return None
    starts, words, shifts, axes, places, widths = [0], [], [], [], [], []
    for tier, ring in enumerate(table.ring_orders()):
        starts.append(starts[-1] + len(ring.bits))
        word, shift = ring_places(ring.bits)
        words.append(word)
        shifts.append(shift)
        axes.append(ring.axes)
        places.append(ring.axes + tier * rank)
        widths.append(int(ring.axes.amax()) + 1 if ring.bits else 0)
    windows = sorted(set(layout.tier_window_bits) - {0})
    tables = [reproduction_values(bits).numpy() for bits in windows]
    first_values = dict(zip(windows, np.cumsum([0, *map(len, tables)]), strict=False))
    rings = Rings(
        starts=np.array(starts),
        words=np.concatenate(words),
        shifts=np.concatenate(shifts),
        masks=np.array([(1 << bits) - 1 for bits in layout.tier_window_bits], np.uint32),
        values=np.concatenate([np.zeros(0, np.float32), *tables]),
        first_values=np.array([first_values.get(bits, 0) for bits in layout.tier_window_bits]),
        first_bytes=first_bytes(table),
        row_bytes=np.array(layout.tier_bytes),
    )
    return _Plan(rings, torch.cat(axes).int(), torch.cat(places).int(), tuple(widths))


def look_up(table: RotatedEmbedding, ids: Tensor) -> Tensor | None:
    """Return the rows (n, D) of ids (n,) in float32."""
    plan = _plan_of(table)
    if plan is None:
        return None
    basis, lengths = basis_of(table)
    gains = (table.gains.float() * lengths).flatten()[plan.places].numpy()
    centres = _centres_of(table, lengths)
    numbers = (plan.rings, table.codes.numpy(), places_of(table)[0])
    tile, of_tier = torch.zeros(len(basis), ROWS_OF_A_TILE), -1

    def points(rows: NDArray[np.int64], tier: int) -> Tensor:
        nonlocal of_tier
        if tier != of_tier or centres is not None:
            # What was read before has values on axes that these rows leave out.
            tile.zero_()
        of_tier, width = tier, plan.widths[tier]
        if width:
            decode(*numbers, rows, tier, gains, plan.axes.numpy(), tile.numpy())
        if centres is not None:
            add_centres(*centres, rows, tile.numpy())
            width = len(basis)
        return tile[:width, : len(rows)].T

    return turned_back(table, ids, basis, points)


def _centres_of(table: RotatedEmbedding, lengths: Tensor) -> tuple[Any, Any, Any] | None:
    """Return the centroids before their gains (K, r), their gains (r,), and the cluster of each row (V,)."""
    if not table.layout.clusters:
        return None
    gains = table.cluster_gains.float() * lengths
    return table.centroid_values().numpy(), gains.numpy(), table.known_clusters().view(torch.uint16).numpy()


def scores(table: RotatedEmbedding, hidden: Tensor) -> Tensor | None:
    """Return hidden · Eᵀ (N, V) of hidden states (N, D), both float32."""
    plan, count, rows = _plan_of(table), len(hidden), table.layout.coded_rows
    if plan is None:
        return None
    basis, lengths = basis_of(table)
    turned = (hidden @ basis.T) * lengths
    offsets = table.means.float() @ hidden.T
    queries = (turned.unsqueeze(1) * table.gains.float()).flatten(1)[:, plan.places]
    # One query alone, or as many as are read at a time: zeros fill the last ones up.
    width = 1 if count == 1 else QUERIES
    queries = torch.nn.functional.pad(queries, (0, 0, 0, -count % width))
    queries = queries.unflatten(0, (-1, width)).transpose(1, 2).contiguous()
    result = torch.empty(count, rows)
    numbers = (plan.rings, table.codes.numpy(), *places_of(table), queries.numpy(), offsets.numpy(), result.numpy())
    shared_out(functools.partial(score, *numbers), rows, rows * queries.shape[1] * count)
    if table.layout.clusters:
        centres = (turned * table.cluster_gains.float()) @ table.centroid_values().T
        result += centres[:, table.cluster_of_rows()]
    return result
