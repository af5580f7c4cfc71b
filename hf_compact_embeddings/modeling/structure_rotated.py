"""Rotated embeddings: coordinates in the table's principal axes, coded close to the rate-distortion bound.

Rows are cut into tiers by what their error costs. A tier spends the same bits on the same axes for all its rows: each
row is one ring of bits, from which every axis reads a window (see `trellis_codes`).
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from .codes import bits_for, pack_codes, packed_width, unpack_codes
from .configuration import StructureConfig
from .decoded_scores import decoded_scores
from .errors import CheckpointError, CompactConfigError
from .structure import CompactEmbedding, register_structure
from .trellis_codes import MAX_BITS, MAX_WINDOW_BITS, MIN_WINDOW_BITS, decode, window_bits_for

_INITIAL_RANGE = 0.02
_DEFAULT_BITS = 1.0
_BASIS_BITS = 6


@dataclasses.dataclass(frozen=True, kw_only=True)
class RotatedConfig(StructureConfig):
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
        metric: what an error costs: "plain", its squared length; "sensitivity", how far it moves the model's
            states over `texts`.
        tier_rows: rows in each tier. Set by the fit, as are the next three.
        tier_bytes: bytes of a row in each tier.
        rank: axes that have bits in some tier.
        basis_bytes: bytes of all coded axes.
    """

    method: ClassVar[str] = "rotated"

    max_bytes: int | None = None
    bits_per_weight: float | None = None
    tiers: int = 4
    max_window_bits: int = 12
    basis: str = "coded"
    frequency_power: float | None = None
    axis_power: float | None = None
    metric: str = "plain"
    tier_rows: tuple[int, ...] = ()
    tier_bytes: tuple[int, ...] = ()
    rank: int | None = None
    basis_bytes: int = 0

    def __post_init__(self) -> None:
        """Check the fields."""
        super().__post_init__()
        if self.max_bytes is not None and self.bits_per_weight is not None:
            raise CompactConfigError(
                f"`max_bytes` is {self.max_bytes!r} and `bits_per_weight` {self.bits_per_weight!r}, "
                "but only one of them can be given."
            )
        if self.max_bytes is not None:
            self.require_integer("max_bytes", 1)
        if self.bits_per_weight is not None:
            self.require_number("bits_per_weight", 1e-4, 16.0)
        self.require_integer("tiers", 1, 16)
        self.require_integer("max_window_bits", MIN_WINDOW_BITS, MAX_WINDOW_BITS)
        self.require_choice("basis", ("coded", "float16"))
        for name in ("frequency_power", "axis_power"):
            if getattr(self, name) is not None:
                self.require_number(name, 0.0, 4.0)
        self.require_choice("metric", ("plain", "sensitivity"))
        for name in ("tier_rows", "tier_bytes"):
            # JSON gives lists back.
            object.__setattr__(self, name, tuple(getattr(self, name)))

    def budget(self, num_embeddings: int, embedding_dim: int) -> int:
        """Return the bytes to spend on a table (V, D)."""
        if self.max_bytes is not None:
            return self.max_bytes
        return int(num_embeddings * embedding_dim * (self.bits_per_weight or _DEFAULT_BITS) / 8)

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
        basis_bytes = rank * packed_width(embedding_dim, _BASIS_BITS) if self.basis == "coded" else 0
        return dataclasses.replace(
            config, tier_rows=(config.coded_rows,), tier_bytes=(row_bytes,), rank=rank, basis_bytes=basis_bytes
        )

    @classmethod
    def candidates(cls, num_embeddings: int, embedding_dim: int, max_bytes: int) -> list[Self]:
        """Spend the budget, with many tiers or few."""
        enough = max_bytes * 8 >= num_embeddings + 64 * embedding_dim
        return [cls(max_bytes=max_bytes, tiers=tiers) for tiers in (4, 2)] if enough else []

    def for_rows(self, count: int) -> Self:
        """Return the same rate for a sample: what does not grow with the rows is paid in full there too."""
        return dataclasses.replace(super().for_rows(count), tier_rows=(), tier_bytes=(), rank=None, basis_bytes=0)


@dataclasses.dataclass(frozen=True)
class _Layout:
    """Where things are, read from the stored bit tables.

    Attributes:
        axes: of each tier, the axes with bits, in the order of the code.
        bits: and how many.
        slots: the place of each row within its tier (V,), int64.
        tiers: the tier of each row (V,), int64.
    """

    axes: tuple[Tensor, ...]
    bits: tuple[tuple[int, ...], ...]
    basis_bits: tuple[int, ...]
    slots: Tensor
    tiers: Tensor


@register_structure(RotatedConfig)
class RotatedEmbedding(CompactEmbedding):
    """Row = coordinates · basis + mean of the tier; coordinates = trellis values · gains of the tier."""

    config: RotatedConfig
    codes: Tensor
    axis_bits: Tensor
    tier_tags: Tensor | None
    basis_codes: Tensor | None
    basis_bits: Tensor | None
    basis_gains: nn.Parameter | None
    basis: nn.Parameter | None

    def __init__(
        self,
        config: RotatedConfig,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        scale: float = 1.0,
    ) -> None:
        """Allocate codes, bit tables, gains, means and basis."""
        super().__init__(config, num_embeddings, embedding_dim, padding_idx, scale)
        config = self.config
        assert config.rank is not None
        tiers, rank, coded = len(config.tier_rows), config.rank, config.basis == "coded"
        code_bytes = sum(rows * size for rows, size in zip(config.tier_rows, config.tier_bytes, strict=True))

        def bytes_of(present: bool, *shape: int) -> Tensor | None:
            return torch.zeros(shape, dtype=torch.uint8) if present else None

        # One after the other, tier by tier: rows of a tier have the same length.
        self.register_buffer("codes", bytes_of(True, code_bytes))
        self.register_buffer("axis_bits", bytes_of(True, tiers, rank))
        self.register_buffer("tier_tags", bytes_of(tiers > 1, packed_width(self.coded_rows, bits_for(tiers))))
        self.register_buffer("basis_codes", bytes_of(coded, config.basis_bytes))
        self.register_buffer("basis_bits", bytes_of(coded, rank))
        self.gains = nn.Parameter(torch.empty(tiers, rank))
        self.means = nn.Parameter(torch.empty(tiers, embedding_dim))
        self.register_parameter("basis_gains", nn.Parameter(torch.empty(rank)) if coded else None)
        self.register_parameter("basis", None if coded else nn.Parameter(torch.empty(rank, embedding_dim)))
        self._layout: tuple[object, _Layout] | None = None
        self._basis_values: tuple[object, Tensor] | None = None

    # Reading.

    def layout(self) -> _Layout:
        """Return the layout; read once, and again when the stored tables have changed."""
        if self._layout is not None and torch.compiler.is_compiling():
            return self._layout[1]
        key = (self.coded_rows, *_state_of(self.axis_bits), *_state_of(self.tier_tags))
        if self._layout is None or self._layout[0] != key:
            self._layout = (key, self._read_layout())
        return self._layout[1]

    def _read_layout(self) -> _Layout:
        device, tiers = self.axis_bits.device, len(self.config.tier_rows)
        axes, bits = [], []
        for row in self.axis_bits.tolist():
            order = sorted((axis for axis, count in enumerate(row) if count), key=lambda axis: -row[axis])
            axes.append(torch.tensor(order, dtype=torch.int64, device=device))
            bits.append(tuple(row[axis] for axis in order))
        if self.tier_tags is None:
            tags = torch.zeros(self.coded_rows, dtype=torch.int64, device=device)
        else:
            tags = unpack_codes(self.tier_tags, self.coded_rows, bits_for(tiers))
        slots = torch.zeros_like(tags)
        for tier in range(tiers):
            mine = tags == tier
            slots[mine] = torch.arange(int(mine.sum()), device=device)
        basis_bits = () if self.basis_bits is None else tuple(self.basis_bits.tolist())
        return _Layout(tuple(axes), tuple(bits), basis_bits, slots, tags)

    def _tier_codes(self, tier: int) -> Tensor:
        """Return the packed rows (n, bytes) of a tier."""
        sizes = [rows * size for rows, size in zip(self.config.tier_rows, self.config.tier_bytes, strict=True)]
        start = sum(sizes[:tier])
        return self.codes[start : start + sizes[tier]].view(self.config.tier_rows[tier], self.config.tier_bytes[tier])

    def _coordinates(self, ids: Tensor) -> Tensor:
        """Return the coordinates (n, r) of the rows `ids` (n,)."""
        layout = self.layout()
        tiers, slots = layout.tiers[ids], layout.slots[ids]
        points = self.gains.new_zeros(len(ids), self.gains.shape[1])
        for tier, bits in enumerate(layout.bits):
            if not bits:
                continue
            window = window_bits_for(sum(bits), self.config.max_window_bits)
            gains = self.gains[tier, layout.axes[tier]]
            if torch.compiler.is_compiling():
                rows = self._tier_codes(tier)[slots.clamp(max=self.config.tier_rows[tier] - 1)]
                read = decode(rows, bits, window).to(gains.dtype) * gains
                mine = (tiers == tier).unsqueeze(-1)
                points = points + torch.where(
                    mine, torch.zeros_like(points).index_copy(1, layout.axes[tier], read), 0.0
                )
                continue
            places = (tiers == tier).nonzero().squeeze(-1)
            read = decode(self._tier_codes(tier)[slots[places]], bits, window).to(gains.dtype) * gains
            spread_out = points.new_zeros(len(places), points.shape[1]).index_copy(1, layout.axes[tier], read)
            points = points.index_copy(0, places, spread_out)
        return points

    def axes(self) -> Tensor:
        """Return the basis (r, D)."""
        if self.basis is not None:
            return self.basis
        assert self.basis_gains is not None and self.basis_codes is not None and self.basis_bits is not None
        key = _state_of(self.basis_codes)
        if self._basis_values is None or not torch.compiler.is_compiling() and self._basis_values[0] != key:
            self._basis_values = (key, self._read_basis())
        return self._basis_values[1].to(self.basis_gains) * self.basis_gains.unsqueeze(-1)

    def _read_basis(self) -> Tensor:
        """Decode the axes (r, D), before their gains."""
        assert self.basis_codes is not None
        rows, start = [], 0
        basis_bits = self.layout().basis_bits
        for bits in basis_bits:
            entries = basis_entries(self.embedding_dim, bits)
            size = entries * bits // 8
            code = self.basis_codes[start : start + size].view(1, size)
            window = window_bits_for(entries * bits)
            rows.append(decode(code, (bits,) * entries, window)[:, : self.embedding_dim])
            start += size
        return torch.cat(rows) if rows else torch.empty(0, self.embedding_dim, device=self.codes.device)

    def coded_vectors(self, ids: Tensor) -> Tensor:
        """Rotate the coordinates back."""
        flat = ids.reshape(-1)
        vectors = self._coordinates(flat) @ self.axes() + self.means[self.layout().tiers[flat]]
        return vectors.view(*ids.shape, self.embedding_dim)

    def coded_scores(self, hidden: Tensor) -> Tensor:
        """Score as (hidden · basisᵀ) · coordinatesᵀ, some rows at a time, and the means once a tier."""
        hidden = hidden.float()
        tiers = self.layout().tiers

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
        self.codes.copy_(torch.cat([part.flatten() for part in codes]))
        if self.tier_tags is not None:
            self.tier_tags.copy_(pack_codes(tags.long().unsqueeze(0), bits_for(len(codes))).squeeze(0))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw codes at random: one bit an axis, on random axes."""
        self.axis_bits.fill_(1)
        self.codes.random_(0, 256)
        if self.tier_tags is not None:
            self.tier_tags.zero_()
        self.means.normal_(std=_INITIAL_RANGE / 2)
        self.gains.fill_(1.0)
        rank = max(1, self.config.rank or 0)
        if self.basis is not None:
            self.basis.normal_(std=_INITIAL_RANGE / rank**0.5)
        if self.basis_codes is not None and self.basis_bits is not None and self.basis_gains is not None:
            self.basis_codes.random_(0, 256)
            self.basis_bits.fill_(_BASIS_BITS)
            self.basis_gains.fill_(_INITIAL_RANGE / rank**0.5)

    @torch.no_grad()
    def keep_rows(self, count: int) -> None:
        """Drop the codes of the last rows, in every tier."""
        tags = self.layout().tiers[:count]
        kept = torch.bincount(tags, minlength=len(self.config.tier_rows)).tolist()
        codes = [self._tier_codes(tier)[:rows].clone() for tier, rows in enumerate(kept)]
        self.codes = torch.cat([part.flatten() for part in codes])
        if self.tier_tags is not None:
            self.tier_tags = pack_codes(tags.unsqueeze(0), bits_for(len(kept))).squeeze(0)
        self.config = dataclasses.replace(self.config, tier_rows=tuple(kept))

    def check_values(self) -> None:
        """Raise if bit tables or tags do not fit to the codes."""
        super().check_values()
        layout, config = self.layout(), self.config
        rows = torch.bincount(layout.tiers, minlength=len(config.tier_rows)).tolist()
        if tuple(rows) != config.tier_rows:
            raise CheckpointError(f"`tier_tags` puts {rows} rows into the tiers, `tier_rows` says {config.tier_rows}.")
        if tuple(sum(bits) // 8 for bits in layout.bits) != config.tier_bytes or int(self.axis_bits.max()) > MAX_BITS:
            raise CheckpointError(f"`axis_bits` does not add up to the `tier_bytes` {config.tier_bytes}.")
        sizes = [basis_entries(self.embedding_dim, bits) * bits // 8 for bits in layout.basis_bits]
        if sum(sizes) != config.basis_bytes:
            raise CheckpointError(f"`basis_bits` adds up to {sum(sizes)} bytes, `basis_bytes` is {config.basis_bytes}.")


def _state_of(tensor: Tensor | None) -> tuple[int, int, torch.device] | tuple[()]:
    """Return what changes when a stored table is written, replaced or moved."""
    return () if tensor is None else (id(tensor), tensor._version, tensor.device)


def basis_entries(width: int, bits: int) -> int:
    """Return to how many entries an axis (D,) is padded so that its code fills whole bytes and one window."""
    while width * bits % 8 or width * bits < MIN_WINDOW_BITS:
        width += 1
    return width
