"""`rotated` tables, read by compiled loops: look-up and scores without a plain tensor of windows."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..modeling.structure_rotated import RotatedEmbedding
from ..modeling.trellis_codes import MAX_BITS, reproduction_values
from .lanes import LANES
from .threads import shared_out
from .trellis_loops import QUERIES, Rings, add_centres, by_tier, decode, first_places, repeat, ring_places, score, spread


# What is decoded at a time lies in the cache until it is turned back.
_ROWS_OF_A_TILE = 256


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
    rows = torch.bincount(table.positions().tiers, minlength=len(layout.tier_rows)).tolist()
    bits_fit = table.axis_bits.sum(1).tolist() == [8 * size for size in layout.tier_bytes]
    if tuple(rows) != layout.tier_rows or not bits_fit or int(table.axis_bits.amax() if rank else 0) > MAX_BITS:
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
    sizes = np.array(layout.tier_rows) * np.array(layout.tier_bytes)
    rings = Rings(
        starts=np.array(starts),
        words=np.concatenate(words),
        shifts=np.concatenate(shifts),
        masks=np.array([(1 << bits) - 1 for bits in layout.tier_window_bits], np.uint32),
        values=np.concatenate([np.zeros(0, np.float32), *tables]),
        first_values=np.array([first_values.get(bits, 0) for bits in layout.tier_window_bits]),
        first_bytes=np.cumsum(sizes) - sizes,
        row_bytes=np.array(layout.tier_bytes),
    )
    return _Plan(rings, torch.cat(axes), torch.cat(places), tuple(widths))


def _basis_of(table: RotatedEmbedding) -> tuple[Tensor, Tensor | None]:
    """Return the axes (r, D) in float32, and what each has to be multiplied by (r,), if anything."""
    if table.basis is not None:
        return table.basis.float(), None
    return table.directions(), table.basis_gains.float()


def look_up(table: RotatedEmbedding, ids: Tensor) -> Tensor | None:
    """Return the rows (n, D) of ids (n,) in float32."""
    plan = _plan_of(table)
    if plan is None:
        return None
    rows, positions = ids.numpy(), table.positions()
    # Texts repeat tokens, and batches padding.
    repeats, distinct = first_places(rows)
    order, firsts = by_tier(positions.tiers.numpy(), rows[distinct], len(plan.widths))
    order, firsts = distinct[order], firsts.tolist()
    basis, lengths = _basis_of(table)
    gains = table.gains.float() if lengths is None else table.gains.float() * lengths
    numbers = (plan.rings, table.codes.numpy(), positions.slots.numpy())
    entries = (gains.flatten()[plan.places].numpy(), plan.axes.numpy())
    centres = _centres_of(table, lengths)
    tile = torch.zeros(len(basis), min(_ROWS_OF_A_TILE, -(-len(rows) // LANES) * LANES))
    turned = torch.empty(min(_ROWS_OF_A_TILE, len(rows)), table.embedding_dim)
    result, means = torch.empty(len(rows), table.embedding_dim), table.means.float().numpy()
    for tier, width in enumerate(plan.widths):
        coded, width = width > 0, width if centres is None else len(basis)
        for first in range(firsts[tier], firsts[tier + 1], _ROWS_OF_A_TILE):
            places = order[first : min(first + _ROWS_OF_A_TILE, firsts[tier + 1])]
            if first == firsts[tier] or centres is not None:
                # What was there before has values on axes that these rows leave out.
                tile.zero_()
            if coded:
                decode(*numbers, rows[places], tier, *entries, tile.numpy())
            if centres is not None:
                add_centres(*centres, rows[places], tile.numpy())
            found = torch.mm(tile[:width, : len(places)].T, basis[:width], out=turned[: len(places)])
            spread(found.numpy(), means[tier], places, result.numpy())
    if len(distinct) < len(rows):
        repeat(repeats, result.numpy())
    return result


def _centres_of(table: RotatedEmbedding, lengths: Tensor | None) -> tuple[NDArray[np.float32], ...] | None:
    """Return the centroids before their gains (K, r), their gains (r,), and the cluster of each row (V,)."""
    if not table.layout.clusters:
        return None
    gains = table.cluster_gains.float()
    gains = gains if lengths is None else gains * lengths
    return table.centroid_values().numpy(), gains.numpy(), table.cluster_of_rows().numpy()


def scores(table: RotatedEmbedding, hidden: Tensor) -> Tensor | None:
    """Return hidden · Eᵀ (N, V) of hidden states (N, D), both float32."""
    plan, count, rows = _plan_of(table), len(hidden), table.layout.coded_rows
    if plan is None or not count:
        return None
    basis, lengths = _basis_of(table)
    turned = hidden @ basis.T if lengths is None else (hidden @ basis.T) * lengths
    offsets = table.means.float() @ hidden.T
    queries = (turned.unsqueeze(1) * table.gains.float()).flatten(1)[:, plan.places]
    # One query alone, or as many as are read at a time: zeros fill the last ones up.
    width = 1 if count == 1 else QUERIES
    queries = torch.nn.functional.pad(queries, (0, 0, 0, -count % width))
    queries = queries.unflatten(0, (-1, width)).transpose(1, 2).contiguous()
    positions, result = table.positions(), torch.empty(count, rows)
    tiers, slots = positions.tiers.numpy(), positions.slots.numpy()
    numbers = (plan.rings, table.codes.numpy(), tiers, slots, queries.numpy(), offsets.numpy(), result.numpy())
    shared_out(functools.partial(score, *numbers), rows, rows * queries.shape[1] * count)
    if table.layout.clusters:
        centres = (turned * table.cluster_gains.float()) @ table.centroid_values().T
        result += centres[:, table.cluster_of_rows()]
    return result

