"""Blocks' rows in an exported graph: one Gather of codes, one of entries."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..modeling.structure_blocks import BlocksEmbedding
from .tiers import Axes, Positions


class GraphRows(nn.Module):
    """Row = its blocks' entries side by side · basis + mean of the tier; blocks without a code are zero."""

    starts: Tensor
    counts: Tensor
    block_of_axis: Tensor

    def __init__(self, structure: BlocksEmbedding) -> None:
        """Take the structure's codes, and note where the rows of each tier begin."""
        super().__init__()
        layout = structure.layout
        self.structure, self.positions, self.axes = structure, Positions(structure), Axes(structure)
        rows, counts = torch.tensor(layout.tier_rows), torch.tensor(layout.tier_blocks)
        widths = torch.tensor(layout.block_widths, dtype=torch.int64)
        self.register_buffer("counts", counts)
        self.register_buffer("starts", (rows * counts).cumsum(0) - rows * counts)
        self.register_buffer("block_of_axis", torch.repeat_interleave(widths).int())

    def forward(self, ids: Tensor) -> Tensor:
        """Return the rows (n, D) of the ids (n,)."""
        structure = self.structure
        tiers, slots = self.positions(ids)
        means = structure.means[tiers]
        if not structure.layout.rank or not structure.codes.numel():
            return means
        blocks, counts = self.block_of_axis.long(), self.counts[tiers].unsqueeze(1)
        held = blocks < counts
        places = torch.where(held, self.starts[tiers].unsqueeze(1) + slots.unsqueeze(1) * counts + blocks, 0)
        codes = nn.functional.embedding(places, structure.codes.unsqueeze(1)).squeeze(-1).long()
        entries = structure.entries()
        points = torch.where(held, entries.gather(0, codes), torch.zeros(()))
        return points @ self.axes() + means
