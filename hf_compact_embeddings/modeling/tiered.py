"""What structures share that code rows in rotated axes: a budget, tiers of rows, their means, and the axes.

Rows are cut into tiers by what their error costs; all rows of a tier take the same bytes. A row is its coordinates
times the basis, plus the mean of its tier. The basis is stored as it is, or as trellis codes (see `trellis_codes`).
"""

from __future__ import annotations

import dataclasses
from typing import Any, Self

import torch
from torch import Tensor, nn

from .codes import bits_for, pack_codes, packed_width, unpack_codes
from .configuration import StructureConfig
from .errors import CheckpointError, CompactConfigError
from .structure import CompactEmbedding
from .trellis_codes import MIN_WINDOW_BITS, decode, window_bits_for

INITIAL_RANGE = 0.02
RANDOM_BASIS_BITS = 6
_DEFAULT_BITS = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class TieredConfig(StructureConfig):
    """The fields that these structures have in common; their own configurations say what each means."""

    max_bytes: int | None = None
    bits_per_weight: float | None = None
    tiers: int = 4
    basis: str = "coded"
    frequency_power: float | None = None
    axis_power: float | None = None
    metric: str = "plain"
    tier_rows: tuple[int, ...] = ()
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
        self.require_choice("basis", ("coded", "float16"))
        for name in ("frequency_power", "axis_power"):
            if getattr(self, name) is not None:
                self.require_number(name, 0.0, 4.0)
        self.require_choice("metric", ("plain", "sensitivity"))
        for field in dataclasses.fields(self):
            # JSON gives lists back.
            if isinstance(getattr(self, field.name), list):
                object.__setattr__(self, field.name, tuple(getattr(self, field.name)))

    def budget(self, num_embeddings: int, embedding_dim: int) -> int:
        """Return the bytes to spend on a table (V, D)."""
        if self.max_bytes is not None:
            return self.max_bytes
        return int(num_embeddings * embedding_dim * (self.bits_per_weight or _DEFAULT_BITS) / 8)

    def row_bytes(self) -> tuple[int, ...]:
        """Return the bytes of a row's code in each tier."""
        raise NotImplementedError

    def random_basis_bytes(self, rank: int, embedding_dim: int) -> int:
        """Return the bytes of a random start's coded axes."""
        return rank * packed_width(embedding_dim, RANDOM_BASIS_BITS) if self.basis == "coded" else 0

    def for_rows(self, count: int) -> Self:
        """Return the same rate for a sample: what does not grow with the rows is paid in full there too."""
        unfitted: dict[str, Any] = {
            field.name: field.default
            for field in dataclasses.fields(self)
            if field.name in ("rank", "basis_bytes") or field.default == ()
        }
        return dataclasses.replace(super().for_rows(count), **unfitted)


@dataclasses.dataclass(frozen=True)
class RowPlaces:
    """Where each row is.

    Attributes:
        tiers: the tier of each row (V,), int64.
        slots: the place of each row within its tier (V,), int64.
    """

    tiers: Tensor
    slots: Tensor


class TieredEmbedding(CompactEmbedding):
    """Rows = coordinates · basis + mean of the tier; a method says how coordinates are coded."""

    config: TieredConfig
    codes: Tensor
    tier_tags: Tensor | None
    basis_codes: Tensor | None
    basis_bits: Tensor | None
    basis_gains: nn.Parameter | None
    basis: nn.Parameter | None

    def __init__(
        self,
        config: TieredConfig,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        scale: float = 1.0,
    ) -> None:
        """Allocate codes, tags, means and basis."""
        super().__init__(config, num_embeddings, embedding_dim, padding_idx, scale)
        config = self.config
        assert config.rank is not None
        tiers, rank, coded = len(config.tier_rows), config.rank, config.basis == "coded"
        code_bytes = sum(rows * size for rows, size in zip(config.tier_rows, config.row_bytes(), strict=True))
        # One after the other, tier by tier: rows of a tier have the same length.
        self.register_buffer("codes", stored_table(True, code_bytes))
        self.register_buffer("tier_tags", stored_table(tiers > 1, packed_width(self.coded_rows, bits_for(tiers))))
        self.register_buffer("basis_codes", stored_table(coded, config.basis_bytes))
        self.register_buffer("basis_bits", stored_table(coded, rank))
        self.means = nn.Parameter(torch.empty(tiers, embedding_dim))
        self.register_parameter("basis_gains", nn.Parameter(torch.empty(rank)) if coded else None)
        self.register_parameter("basis", None if coded else nn.Parameter(torch.empty(rank, embedding_dim)))
        self._places: tuple[object, RowPlaces] | None = None
        self._basis_values: tuple[object, Tensor] | None = None

    # Tiers.

    def places(self) -> RowPlaces:
        """Return where each row is; read once, and again when the tags have changed."""
        if self._places is not None and torch.compiler.is_compiling():
            return self._places[1]
        key = (self.coded_rows, self.codes.device, *state_of(self.tier_tags))
        if self._places is None or self._places[0] != key:
            self._places = (key, self._read_places())
        return self._places[1]

    def _read_places(self) -> RowPlaces:
        device, tiers = self.codes.device, len(self.config.tier_rows)
        if self.tier_tags is None:
            tags = torch.zeros(self.coded_rows, dtype=torch.int64, device=device)
        else:
            tags = unpack_codes(self.tier_tags, self.coded_rows, bits_for(tiers))
        slots = torch.zeros_like(tags)
        for tier in range(tiers):
            mine = tags == tier
            slots[mine] = torch.arange(int(mine.sum()), device=device)
        return RowPlaces(tags, slots)

    def tier_codes(self, tier: int) -> Tensor:
        """Return the codes (n, bytes) of a tier's rows."""
        rows, size = self.config.tier_rows, self.config.row_bytes()
        start = sum(count * width for count, width in zip(rows[:tier], size, strict=False))
        return self.codes[start : start + rows[tier] * size[tier]].view(rows[tier], size[tier])

    @torch.no_grad()
    def set_row_codes(self, tags: Tensor, codes: list[Tensor]) -> None:
        """Store the tier of each row (V,) and the codes (n, bytes) of each tier."""
        self.codes.copy_(torch.cat([part.flatten() for part in codes]))
        if self.tier_tags is not None:
            self.tier_tags.copy_(pack_codes(tags.long().unsqueeze(0), bits_for(len(codes))).squeeze(0))

    @torch.no_grad()
    def keep_rows(self, count: int) -> None:
        """Drop the codes of the last rows, in every tier."""
        tags = self.places().tiers[:count]
        kept = torch.bincount(tags, minlength=len(self.config.tier_rows)).tolist()
        codes = [self.tier_codes(tier)[:rows].clone() for tier, rows in enumerate(kept)]
        self.codes = torch.cat([part.flatten() for part in codes])
        if self.tier_tags is not None:
            self.tier_tags = pack_codes(tags.unsqueeze(0), bits_for(len(kept))).squeeze(0)
        self.config = dataclasses.replace(self.config, tier_rows=tuple(kept))

    # Axes.

    def axes(self) -> Tensor:
        """Return the basis (r, D)."""
        if self.basis is not None:
            return self.basis
        assert self.basis_gains is not None
        key = (*state_of(self.basis_codes), *state_of(self.basis_bits))
        if self._basis_values is None or not torch.compiler.is_compiling() and self._basis_values[0] != key:
            self._basis_values = (key, self._read_basis())
        return self._basis_values[1].to(self.basis_gains) * self.basis_gains.unsqueeze(-1)

    def _read_basis(self) -> Tensor:
        """Decode the axes (r, D), before their gains."""
        assert self.basis_codes is not None and self.basis_bits is not None
        rows, start = [], 0
        for bits in self.basis_bits.tolist():
            if not bits:
                rows.append(torch.zeros(1, self.embedding_dim, device=self.codes.device))
                continue
            entries = basis_entries(self.embedding_dim, bits)
            size = entries * bits // 8
            code = self.basis_codes[start : start + size].view(1, size)
            window = window_bits_for(entries * bits)
            rows.append(decode(code, (bits,) * entries, window)[:, : self.embedding_dim])
            start += size
        return torch.cat(rows) if rows else torch.empty(0, self.embedding_dim, device=self.codes.device)

    @torch.no_grad()
    def set_basis(self, codes: list[Tensor], bits: tuple[int, ...], gains: Tensor, basis: Tensor) -> None:
        """Store the axes: as they are (r, D), or the codes, bits and gains of each."""
        if self.basis is not None:
            self.basis.copy_(basis)
        if self.basis_codes is not None and self.basis_bits is not None and self.basis_gains is not None:
            if bits:
                self.basis_codes.copy_(torch.cat([code.flatten() for code in codes]))
            self.basis_bits.copy_(torch.tensor(bits, dtype=torch.uint8))
            self.basis_gains.copy_(gains)

    # Both.

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw codes, means and axes at random, all rows in the first tier."""
        self.codes.random_(0, 256)
        if self.tier_tags is not None:
            self.tier_tags.zero_()
        self.means.normal_(std=INITIAL_RANGE / 2)
        spread = INITIAL_RANGE / max(1, self.config.rank or 0) ** 0.5
        if self.basis is not None:
            self.basis.normal_(std=spread)
        if self.basis_codes is not None and self.basis_bits is not None and self.basis_gains is not None:
            self.basis_codes.random_(0, 256)
            self.basis_bits.fill_(RANDOM_BASIS_BITS)
            self.basis_gains.fill_(spread)

    def check_values(self) -> None:
        """Raise if tags or bit tables do not fit to the codes."""
        super().check_values()
        config = self.config
        rows = torch.bincount(self.places().tiers, minlength=len(config.tier_rows)).tolist()
        if tuple(rows) != config.tier_rows:
            raise CheckpointError(f"`tier_tags` puts {rows} rows into the tiers, `tier_rows` says {config.tier_rows}.")
        if self.basis_bits is not None:
            bits = self.basis_bits.tolist()
            size = sum(basis_entries(self.embedding_dim, count) * count // 8 for count in bits)
            if size != config.basis_bytes:
                raise CheckpointError(f"`basis_bits` adds up to {size} bytes, `basis_bytes` is {config.basis_bytes}.")
        # Read now, and kept: a compiler that traces the model could not.
        self.axes()


def stored_table(present: bool, *shape: int) -> Tensor | None:
    """Return bytes to fill, or None where a structure has no such table."""
    return torch.zeros(shape, dtype=torch.uint8) if present else None


def state_of(tensor: Tensor | None) -> tuple[int, int, torch.device] | tuple[()]:
    """Return what changes when a stored table is written, replaced or moved."""
    return () if tensor is None else (id(tensor), tensor._version, tensor.device)


def basis_entries(width: int, bits: int) -> int:
    """Return to how many entries an axis (D,) is padded so that its code fills whole bytes and one window.

    An axis without bits has no code.
    """
    if not bits:
        return 0
    while width * bits % 8 or width * bits < MIN_WINDOW_BITS:
        width += 1
    return width
