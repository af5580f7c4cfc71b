"""Tiers and axes in an exported graph, in about as many bytes as a checkpoint has for them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..modeling.tiered import TieredEmbedding, basis_entries
from ..modeling.trellis_codes import decode, window_bits_for

# Rows of which the positions are counted from one number, so that a byte holds each row's own.
_BLOCK_BITS = 8


class Positions(nn.Module):
    """Where rows are: a byte for the tier of each, a byte for its place among those of its tier in a block of rows."""

    tiers: Tensor | None
    places: Tensor
    firsts: Tensor

    def __init__(self, structure: TieredEmbedding) -> None:
        """Count the rows of a structure once."""
        super().__init__()
        self.count = len(structure.layout.tier_rows)
        if self.count == 1:
            self.register_buffer("tiers", None)
            return
        tiers, slots = structure.positions().of()
        rows = torch.arange(len(tiers))
        blocks = rows >> _BLOCK_BITS
        # Of each block and tier, how many rows of the tier lie before it.
        counts = torch.zeros(int(blocks[-1]) + 1, self.count, dtype=torch.int64)
        counts.index_put_((blocks, tiers), torch.ones_like(rows), accumulate=True)
        firsts = counts.cumsum(0) - counts
        self.register_buffer("tiers", tiers.to(torch.uint8))
        self.register_buffer("places", (slots - firsts[blocks, tiers]).to(torch.uint8))
        self.register_buffer("firsts", firsts.int().flatten())

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return the tiers (n,) of ids (n,), and their slots (n,) there; int64."""
        if self.tiers is None:
            return torch.zeros_like(ids), ids
        tiers = self.tiers[ids].long()
        return tiers, self.firsts[(ids >> _BLOCK_BITS) * self.count + tiers].long() + self.places[ids].long()


class Axes(nn.Module):
    """The basis: as it is, or decoded from its trellis codes, which a runtime does once when it loads the graph."""

    order: Tensor

    def __init__(self, structure: TieredEmbedding) -> None:
        """Sort coded axes by how many bits their entries have: those of as many are decoded together."""
        super().__init__()
        self.structure, self.groups = structure, []
        if structure.basis is not None:
            return
        bits = structure.basis_bits.long()
        sizes = torch.tensor([basis_entries(structure.embedding_dim, count) * count // 8 for count in bits.tolist()])
        starts = sizes.cumsum(0) - sizes
        for count in bits.unique().tolist():
            mine = (bits == count).nonzero().squeeze(1)
            codes = torch.stack([structure.basis_codes[starts[i] : starts[i] + sizes[i]] for i in mine.tolist()])
            self.register_buffer(f"codes_{count}", codes)
            self.groups.append(count)
        self.register_buffer("order", bits.argsort(stable=True).argsort().int())

    def forward(self) -> Tensor:
        """Return the basis (r, D)."""
        structure: Any = self.structure
        if structure.basis is not None:
            return structure.basis
        width, parts = structure.embedding_dim, []
        for count in self.groups:
            codes = getattr(self, f"codes_{count}")
            entries = basis_entries(width, count)
            if not count:
                parts.append(torch.zeros(codes.shape[0], width))
                continue
            window = window_bits_for(entries * count)
            parts.append(decode(codes, (count,) * entries, window)[:, :width])
        directions = torch.cat(parts)[self.order.long()] if parts else torch.zeros(0, width)
        return directions * structure.basis_gains.unsqueeze(-1)
