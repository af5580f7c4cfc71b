"""Rotated rows in an exported graph: the rings of all tiers are read at once, and those of centroids like another."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..modeling.structure_rotated import RingOrder, RotatedEmbedding
from .reading import Rings
from .tiers import Axes, Positions


class GraphRows(nn.Module):
    """Row = (values · gains of its tier + centroid) · basis + mean of its tier."""

    starts: Tensor
    sizes: Tensor
    clusters: Tensor

    def __init__(self, structure: RotatedEmbedding) -> None:
        """Take the structure's codes, and note where the rows of each tier begin."""
        super().__init__()
        layout = structure.layout
        self.structure, self.positions, self.axes = structure, Positions(structure), Axes(structure)
        rows, sizes = torch.tensor(layout.tier_rows), torch.tensor(layout.tier_bytes)
        self.register_buffer("sizes", sizes)
        self.register_buffer("starts", (rows * sizes).cumsum(0) - rows * sizes)
        orders = [order.axes for order in structure.ring_orders()]
        self.rings = Rings(list(structure.axis_bits), orders, list(layout.tier_bytes), list(layout.tier_window_bits))
        # An axis without bits has no value: whatever is read there counts nothing.
        held = structure.axis_bits > 0
        self.gains = nn.Parameter(torch.where(held, structure.gains, torch.zeros_like(structure.gains)))
        if not layout.clusters:
            return
        clusters = structure.cluster_of_rows()
        # One byte or two: graphs have no shorter way to write a number.
        planes = [clusters & 255] if layout.clusters <= 256 else [clusters & 255, clusters >> 8]
        self.register_buffer("clusters", torch.stack(planes, dim=1).to(torch.uint8))
        bits = structure.cluster_bits
        self.centroid_rings = Rings(
            [bits], [RingOrder.of(bits).axes], [layout.cluster_bytes], [layout.cluster_window_bits]
        )
        self.centroid_gains = nn.Parameter(
            torch.where(bits > 0, structure.cluster_gains, torch.zeros_like(structure.cluster_gains))
        )

    def forward(self, ids: Tensor) -> Tensor:
        """Return the rows (n, D) of the ids (n,)."""
        structure, layout = self.structure, self.structure.layout
        tiers, slots = self.positions(ids)
        means = structure.means[tiers]
        if not layout.rank:
            return means
        points = 0
        if structure.codes.numel():
            # The last rows of a tier without bytes lie at the end of the codes, where there is nothing.
            starts = self.starts[tiers] + slots * self.sizes[tiers]
            starts = torch.where(self.sizes[tiers] > 0, starts, 0)
            points = self.rings(structure.codes, starts, tiers) * self.gains[tiers]
        if layout.clusters:
            planes = self.clusters[ids].long().unbind(1)
            clusters = planes[0] if len(planes) == 1 else planes[0] + 256 * planes[1]
            centroids = structure.cluster_codes.flatten()
            values = self.centroid_rings(centroids, clusters * layout.cluster_bytes, torch.zeros_like(clusters))
            points = points + values * self.centroid_gains
        return points @ self.axes() + means
