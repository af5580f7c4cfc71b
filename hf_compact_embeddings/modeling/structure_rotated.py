"""Rotated embeddings: coordinates in the table's principal axes, coded close to the rate-distortion bound.

Rows are cut into tiers by what their error costs. A tier spends the same bits on the same axes for all its rows: each
row is one ring of bits, from which every axis reads a window (see `trellis_codes`).
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from .codes import is_traced
from .decoded_scores import decoded_scores
from .errors import CheckpointError
from .structure import register_structure
from .tiered import TieredConfig, TieredEmbedding, stored_table
from .trellis_codes import MAX_BITS, MAX_WINDOW_BITS, MIN_WINDOW_BITS, decode, window_bits_for


@dataclasses.dataclass(frozen=True, kw_only=True)
class RotatedConfig(TieredConfig):
    """Configuration of rotated embeddings. One of `max_bytes` and `bits_per_weight` gives the size; none: 1 bit.

    Attributes:
        max_bytes: the bytes to spend; rows kept exactly come on top.
        bits_per_weight: the same, as bits for each value of the table.
        tiers: at most this many groups of rows with rates of their own.
        max_window_bits: log2 of the states of the trellis; each more costs twice the time to fit.
        basis: "coded" stores the axes as trellis codes too, and trains only their lengths; "float16" stores
            them as they are, and trains them.
        frequency_power: errors weigh (count + 1)^power when bits are given out, where counts are known; None: 0.3,
            or 0.75 where an output head scores through the table.
        axis_power: the same for axes, means and gains; None: 0.75, or 1.0 with such a head.
        metric: what an error costs: "plain", its squared length; "sensitivity", how far it moves what the model gives
            over `texts`: the scores of a head that is tied to the table, or else the states.
        tier_rows: rows in each tier. Set by the fit, as are the next three.
        tier_bytes: bytes of a row in each tier.
        rank: axes that have bits in some tier.
        basis_bytes: bytes of all coded axes.
    """

    method: ClassVar[str] = "rotated"

    max_window_bits: int = 12
    tier_bytes: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Check the fields."""
        super().__post_init__()
        self.require_integer("max_window_bits", MIN_WINDOW_BITS, MAX_WINDOW_BITS)

    def row_bytes(self) -> tuple[int, ...]:
        """Return the bytes of a row's code in each tier."""
        return self.tier_bytes

    def resolved(self, num_embeddings: int, embedding_dim: int) -> Self:
        """Lay out a random start where no fit has set the shapes: one tier, a bit for each of the first axes."""
        config = super().resolved(num_embeddings, embedding_dim)
        if self.rank is not None:
            return config
        assert config.coded_rows is not None
        row_bytes = max(
            1, min(embedding_dim, self.budget(config.coded_rows, embedding_dim) * 8 // config.coded_rows) // 8
        )
        rank = row_bytes * 8
        if rank > embedding_dim:
            rank, row_bytes = 0, 0
        return dataclasses.replace(
            config,
            tier_rows=(config.coded_rows,),
            tier_bytes=(row_bytes,),
            rank=rank,
            basis_bytes=self.random_basis_bytes(rank, embedding_dim),
        )

    @classmethod
    def candidates(cls, num_embeddings: int, embedding_dim: int, max_bytes: int) -> list[Self]:
        """Spend the budget, with many tiers or few."""
        enough = max_bytes * 8 >= num_embeddings + 64 * embedding_dim
        return [cls(max_bytes=max_bytes, tiers=tiers) for tiers in (4, 2)] if enough else []


@dataclasses.dataclass(frozen=True)
class _Layout:
    """Where things are, read from the stored bit tables.

    Attributes:
        axes: of each tier, the axes with bits, in the order of the code.
        bits: and how many.
    """

    axes: tuple[Tensor, ...]
    bits: tuple[tuple[int, ...], ...]


@register_structure(RotatedConfig)
class RotatedEmbedding(TieredEmbedding):
    """Row = coordinates · basis + mean of the tier; coordinates = trellis values · gains of the tier."""

    config: RotatedConfig
    axis_bits: Tensor

    def __init__(
        self,
        config: RotatedConfig,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        scale: float = 1.0,
    ) -> None:
        """Allocate bit tables and gains beside what tiers need."""
        super().__init__(config, num_embeddings, embedding_dim, padding_idx, scale)
        assert self.config.rank is not None
        shape = (len(self.config.tier_rows), self.config.rank)
        self.register_buffer("axis_bits", stored_table(True, *shape))
        self.gains = nn.Parameter(torch.empty(shape))

    # Reading.

    def layout(self) -> _Layout:
        """Return where the bits of each tier are."""
        return self.known("layout", (self.axis_bits,), self._read_layout)

    def read_tables(self) -> None:
        """Read the layout too."""
        super().read_tables()
        self.layout()

    def _read_layout(self) -> _Layout:
        axes, bits = [], []
        for row in self.axis_bits.tolist():
            order = sorted((axis for axis, count in enumerate(row) if count), key=lambda axis: -row[axis])
            axes.append(torch.tensor(order, dtype=torch.int64, device=self.axis_bits.device))
            bits.append(tuple(row[axis] for axis in order))
        return _Layout(tuple(axes), tuple(bits))

    def _coordinates(self, ids: Tensor) -> Tensor:
        """Return the coordinates (n, r) of the rows `ids` (n,)."""
        layout, rows_at = self.layout(), self.places()
        tiers, slots = rows_at.tiers[ids], rows_at.slots[ids]
        points = self.gains.new_zeros(len(ids), self.gains.shape[1])
        for tier, bits in enumerate(layout.bits):
            if not bits or not self.config.tier_rows[tier]:
                continue
            window = window_bits_for(sum(bits), self.config.max_window_bits)
            gains = self.gains[tier, layout.axes[tier]]
            if is_traced():
                rows = self.tier_codes(tier)[slots.clamp(max=self.config.tier_rows[tier] - 1)]
                read = decode(rows, bits, window).to(gains.dtype) * gains
                mine = (tiers == tier).unsqueeze(-1)
                points = points + torch.where(
                    mine, torch.zeros_like(points).index_copy(1, layout.axes[tier], read), 0.0
                )
                continue
            places = (tiers == tier).nonzero().squeeze(-1)
            read = decode(self.tier_codes(tier)[slots[places]], bits, window).to(gains.dtype) * gains
            spread_out = points.new_zeros(len(places), points.shape[1]).index_copy(1, layout.axes[tier], read)
            points = points.index_copy(0, places, spread_out)
        return points

    def coded_vectors(self, ids: Tensor) -> Tensor:
        """Rotate the coordinates back."""
        flat = ids.reshape(-1)
        vectors = self._coordinates(flat) @ self.axes() + self.means[self.places().tiers[flat]]
        return vectors.view(*ids.shape, self.embedding_dim)

    def coded_scores(self, hidden: Tensor) -> Tensor:
        """Score as (hidden · basisᵀ) · coordinatesᵀ, some rows at a time, and the means once a tier."""
        hidden = hidden.float()
        tiers = self.places().tiers

        def coordinates(start: int, stop: int) -> Tensor:
            return self._coordinates(torch.arange(start, stop, device=hidden.device))

        offset = (hidden @ self.means.float().T)[:, tiers]
        if not self.config.rank:
            return offset
        return decoded_scores(hidden @ self.axes().float().T, self.coded_rows, coordinates) + offset

    # Writing.

    @torch.no_grad()
    def set_codes(self, tags: Tensor, codes: list[Tensor], axis_bits: Tensor) -> None:
        """Store the tier of each row (V,), the packed rows (n, bytes) of each tier, and its bits (T, r)."""
        self.axis_bits.copy_(axis_bits)
        self.set_row_codes(tags, codes)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw codes at random: one bit an axis, on random axes."""
        super().reset_parameters()
        self.axis_bits.fill_(1)
        self.gains.fill_(1.0)

    def check_values(self) -> None:
        """Raise if bit tables or tags do not fit to the codes."""
        super().check_values()
        bits = self.layout().bits
        if tuple(sum(row) // 8 for row in bits) != self.config.tier_bytes or int(self.axis_bits.max()) > MAX_BITS:
            raise CheckpointError(f"`axis_bits` does not add up to the `tier_bytes` {self.config.tier_bytes}.")
