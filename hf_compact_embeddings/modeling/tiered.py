"""What structures share that code rows in rotated axes: a budget, tiers of rows, their means, and the axes.

Rows are cut into tiers by what their error costs; all rows of a tier take the same bytes. A row is its coordinates
times the basis, plus the mean of its tier. The basis is stored as it is, or as trellis codes (see `trellis_codes`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Self, TypeVar

import torch
from torch import Tensor, nn

from .codes import bits_for, is_traced, pack_codes, packed_width, unpack_codes
from .configuration import StructureConfig
from .errors import CheckpointError, CompactConfigError
from .prefix_codes import is_complete, named_bytes, pack_names, unpack_names
from .structure import CompactEmbedding
from .trellis_codes import MIN_WINDOW_BITS, decode, window_bits_for

INITIAL_RANGE = 0.02
RANDOM_BASIS_BITS = 6
_DEFAULT_BITS = 1.0

_T = TypeVar("_T")


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
    tier_tag_lengths: tuple[int, ...] = ()
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
        self.require_names("tier_tag_lengths", self.tier_tag_lengths, len(self.tier_rows))

    def require_names(self, field: str, lengths: tuple[int, ...], kinds: int) -> None:
        """Raise unless names of these lengths tell so many kinds apart; none at all say that they are equally long."""
        if lengths and not (len(lengths) == kinds and is_complete(lengths)):
            raise CompactConfigError(f"`{field}` is {getattr(self, field)}, which are no names for {kinds}.")

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

    def unfitted(self) -> Self:
        """Keep the budget, and forget tiers and axes."""
        fields: dict[str, Any] = {
            field.name: field.default
            for field in dataclasses.fields(self)
            if field.name in ("rank", "basis_bytes") or field.default == ()
        }
        return dataclasses.replace(self, **fields)


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
        self.register_buffer("tier_tags", stored_table(tiers > 1, self._tier_tag_bytes()))
        self.register_buffer("basis_codes", stored_table(coded, config.basis_bytes))
        self.register_buffer("basis_bits", stored_table(coded, rank))
        self.means = nn.Parameter(torch.empty(tiers, embedding_dim))
        self.register_parameter("basis_gains", nn.Parameter(torch.empty(rank)) if coded else None)
        self.register_parameter("basis", None if coded else nn.Parameter(torch.empty(rank, embedding_dim)))
        self._known: dict[str, tuple[object, Any]] = {}

    # What is read from stored tables once.

    def known(self, name: str, tables: tuple[Tensor | None, ...], read: Callable[[], _T]) -> _T:
        """Return what `read` makes of stored tables; it reads again only when they were written, replaced or moved.

        A compiler that traces the model can neither compare nor read, and takes what is there: who changes the tables
        for good calls `read_tables()`.
        """
        found = self._known.get(name)
        if found is None or not is_traced() and found[0] != _state_of(tables):
            # What inference mode makes is no use to training.
            with torch.inference_mode(False), torch.no_grad():
                found = (_state_of(tables), read())
            # Copies of the module that other threads run share the old one.
            self._known = {**self._known, name: found}
        return found[1]

    def read_tables(self) -> None:
        """Read now what is read once."""
        self.places()
        if self._basis_size() == self.config.basis_bytes:
            self.axes()

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        """Move, and read there again what was read already."""
        super()._apply(fn, recurse)
        if self.codes.is_meta:
            self._known = {}
        if self._known:
            self.read_tables()
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        """Load, and read again what was read already."""
        super()._load_from_state_dict(*args, **kwargs)
        if self._known:
            self._known = {}
            self.read_tables()

    # Tiers.

    def places(self) -> RowPlaces:
        """Return where each row is."""
        return self.known("places", (self.codes, self.tier_tags), self._read_places)

    def _read_places(self) -> RowPlaces:
        device, tiers = self.codes.device, len(self.config.tier_rows)
        if self.tier_tags is None:
            tags = torch.zeros(self.coded_rows, dtype=torch.int64, device=device)
        else:
            tags = unpack_tags(self.tier_tags, self.coded_rows, tiers, self.config.tier_tag_lengths)
        slots = torch.zeros_like(tags)
        for tier in range(tiers):
            mine = tags == tier
            slots[mine] = torch.arange(int(mine.sum()), device=device)
        return RowPlaces(tags, slots)

    def _tier_tag_bytes(self) -> int:
        rows, lengths = self.config.tier_rows, self.config.tier_tag_lengths
        return named_bytes(rows, lengths) if lengths else packed_width(self.coded_rows, bits_for(len(rows)))

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
            self.tier_tags.copy_(pack_tags(tags.long(), len(codes), self.config.tier_tag_lengths))

    @torch.no_grad()
    def keep_rows(self, count: int) -> None:
        """Drop the codes of the last rows, in every tier."""
        tags = self.places().tiers[:count]
        kept = torch.bincount(tags, minlength=len(self.config.tier_rows)).tolist()
        codes = [self.tier_codes(tier)[:rows].clone() for tier, rows in enumerate(kept)]
        self.codes = torch.cat([part.flatten() for part in codes])
        if self.tier_tags is not None:
            self.tier_tags = pack_tags(tags, len(kept), self.config.tier_tag_lengths)
        self.config = dataclasses.replace(self.config, tier_rows=tuple(kept), coded_rows=count)
        self.read_tables()

    # Axes.

    def axes(self) -> Tensor:
        """Return the basis (r, D)."""
        if self.basis is not None:
            return self.basis
        assert self.basis_gains is not None
        directions = self.known("basis", (self.basis_codes, self.basis_bits), self._read_basis)
        return directions.to(self.basis_gains) * self.basis_gains.unsqueeze(-1)

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

    def _basis_size(self) -> int:
        """Return how many bytes all axes' codes take by their bits."""
        bits = [] if self.basis_bits is None else self.basis_bits.tolist()
        return sum(basis_entries(self.embedding_dim, count) * count // 8 for count in bits)

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
        size = self._basis_size()
        if size != config.basis_bytes:
            raise CheckpointError(f"`basis_bits` adds up to {size} bytes, `basis_bytes` is {config.basis_bytes}.")
        self.read_tables()


def stored_table(present: bool, *shape: int) -> Tensor | None:
    """Return bytes to fill, or None where a structure has no such table."""
    return torch.zeros(shape, dtype=torch.uint8) if present else None


def pack_tags(values: Tensor, kinds: int, lengths: tuple[int, ...]) -> Tensor:
    """Write of which kind each row is (V,), in names of these lengths; where none are given, all are equally long."""
    if lengths:
        return pack_names(values, lengths)
    return pack_codes(values.unsqueeze(0), bits_for(kinds)).squeeze(0)


def unpack_tags(packed: Tensor, rows: int, kinds: int, lengths: tuple[int, ...]) -> Tensor:
    """Read what `pack_tags` wrote (V,), int64."""
    return unpack_names(packed, rows, lengths) if lengths else unpack_codes(packed, rows, bits_for(kinds))


def _state_of(tables: tuple[Tensor | None, ...]) -> list[object]:
    """Return what changes when tables are written, replaced or moved. Inference tensors do not count writes."""
    return [
        None if table is None else (id(table), table.device, 0 if table.is_inference() else table._version)
        for table in tables
    ]


def basis_entries(width: int, bits: int) -> int:
    """Return to how many entries an axis (D,) is padded so that its code fills whole bytes and one window.

    An axis without bits has no code.
    """
    if not bits:
        return 0
    while width * bits % 8 or width * bits < MIN_WINDOW_BITS:
        width += 1
    return width
