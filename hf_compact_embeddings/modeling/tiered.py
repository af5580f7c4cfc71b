"""What structures share that code rows in rotated axes: tiers of rows, their means, and the axes.

Rows are cut into tiers by what their error costs; all rows of a tier take the same bytes. A row is its coordinates
times the basis, plus the mean of its tier. The basis is stored as it is, or as trellis codes (see `trellis_codes`).

| tensor | shape | type | meaning |
|---|---|---|---|
| `codes` | (sum over tiers of rows · bytes,) | uint8 | the rows' codes, tier by tier, each tier's rows in order |
| `tier_index` | (bytes,) | uint8 | the tier of each row, Huffman-coded with `tier_code_lengths`; from two tiers on |
| `means` | (T, D) | float | what is added to all rows of a tier |
| `basis` | (r, D) | float | the axes; or, with `basis="coded"`, instead of it: |
| `basis_codes` | (basis_bytes,) | uint8 | trellis codes of the axes, one axis after the other |
| `basis_bits` | (r,) | uint8 | bits of each entry of an axis, 0 to 6; 0 is an axis of zeros |
| `basis_gains` | (r,) | float | the length that each decoded axis is multiplied by |

T are the tiers, r is the rank: the axes that are kept.
"""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Callable
from typing import Any, Self, TypeVar

import torch
from torch import Tensor, nn

from .codes import is_traced, packed_width
from .errors import CheckpointError, config_error
from .huffman import MAX_LENGTH, coded_bytes, is_complete, pack_symbols, unpack_symbols
from .options import StructureConfig, StructureLayout, choice, integer, integers, number
from .structure import CompactEmbedding
from .trellis_codes import MAX_BITS, MIN_WINDOW_BITS, decode, window_bits_for

INITIAL_RANGE = 0.02
RANDOM_BASIS_BITS = 6
# What a table takes where no budget is given.
_DEFAULT_BITS = 1.0
_MAX_TIERS = 16

_T = TypeVar("_T")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TieredConfig(StructureConfig):
    """The options that these structures have in common; their own say what each means."""

    tiers: int = integer(6, 1, _MAX_TIERS)
    basis: str = choice("coded", "float16")
    frequency_power: float | None = number(None, 0.0, 4.0)
    axis_power: float | None = number(None, 0.0, 4.0)
    metric: str = choice("auto", "plain", "sensitivity")

    @staticmethod
    def default_budget(rows: int, width: int) -> int:
        """Return the bytes for a table (rows, width) where no budget is given."""
        return int(rows * width * _DEFAULT_BITS / 8)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TieredLayout(StructureLayout):
    """The sizes that these structures have in common.

    Attributes:
        tier_rows: rows in each tier.
        tier_code_lengths: bits of each tier's codeword in `tier_index`; empty where there is one tier.
        rank: r, axes that are kept.
        basis_bytes: bytes of all coded axes.
    """

    tier_rows: tuple[int, ...] = integers()
    tier_code_lengths: tuple[int, ...] = integers(1, MAX_LENGTH)
    rank: int = integer()
    basis_bytes: int = integer()

    def row_bytes(self) -> tuple[int, ...]:
        """Return the bytes of a row's code in each tier."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class RowPositions:
    """Where each row is. They stay in memory beside the codes, and so are small.

    Attributes:
        places: the place of each row (V,) if rows were sorted by their tiers, int32.
        firsts: where each tier begins (T,), int64.
    """

    places: Tensor
    firsts: Tensor

    def of(self, ids: Tensor | slice = slice(None)) -> tuple[Tensor, Tensor]:
        """Return the tiers of rows (n,), of all if none are given, and their positions within these (n,)."""
        places = self.places[ids].long()
        tiers = (places.unsqueeze(-1) >= self.firsts).sum(-1) - 1
        return tiers, places - self.firsts[tiers]


class TieredEmbedding(CompactEmbedding):
    """Rows = coordinates · basis + mean of the tier; a method says how coordinates are coded."""

    options: Any
    layout: Any
    codes: Tensor
    tier_index: Tensor | None
    basis_codes: Tensor
    basis_bits: Tensor
    basis_gains: nn.Parameter
    basis: nn.Parameter | None

    def allocate(self) -> None:
        """Allocate codes, tiers, means and basis."""
        options, layout = self.options, self.layout
        tiers, rank, coded = len(layout.tier_rows), layout.rank, options.basis == "coded"
        code_bytes = sum(rows * size for rows, size in zip(layout.tier_rows, layout.row_bytes(), strict=True))
        self.register_buffer("codes", stored_bytes(True, code_bytes))
        index_bytes = coded_bytes(layout.tier_rows, layout.tier_code_lengths) if tiers > 1 else 0
        self.register_buffer("tier_index", stored_bytes(tiers > 1, index_bytes))
        self.register_buffer("basis_codes", stored_bytes(coded, layout.basis_bytes))
        self.register_buffer("basis_bits", stored_bytes(coded, rank))
        self.means = nn.Parameter(torch.empty(tiers, self.embedding_dim))
        self.register_parameter("basis_gains", nn.Parameter(torch.empty(rank)) if coded else None)
        self.register_parameter("basis", None if coded else nn.Parameter(torch.empty(rank, self.embedding_dim)))
        self._known: dict[str, tuple[_State, Any]] = {}

    def check_layout(self) -> None:
        """Raise if tiers do not add up, or their codewords cannot be told apart."""
        super().check_layout()
        layout = self.layout
        if not 1 <= len(layout.tier_rows) <= _MAX_TIERS or sum(layout.tier_rows) != layout.coded_rows:
            allowed = f"it must be 1 to {_MAX_TIERS} numbers that add up to `coded_rows`, {layout.coded_rows:,}"
            raise config_error("tier_rows", layout.tier_rows, allowed)
        if len(layout.row_bytes()) != len(layout.tier_rows):
            raise config_error("tier_rows", layout.tier_rows, f"there are {len(layout.row_bytes())} kinds of rows")
        check_code("tier_code_lengths", layout.tier_code_lengths, len(layout.tier_rows))
        if layout.rank > self.embedding_dim:
            raise config_error("rank", layout.rank, f"the table is only {self.embedding_dim} wide")

    # What is read from stored tables once.

    def known(self, name: str, tables: tuple[Tensor | None, ...], read: Callable[[], _T]) -> _T:
        """Return what `read` makes of stored tables; it reads again only when they were written, replaced or moved.

        A compiler that traces the model can neither compare nor read, and takes what is there: who changes the tables
        for good calls `read_tables()`.
        """
        found = self._known.get(name)
        if found is None or (not is_traced() and not found[0].is_that_of(tables)):
            # What inference mode makes is no use to training.
            with torch.inference_mode(False), torch.no_grad():
                found = (_State(tables), read())
            # Copies of the module that other threads run share the old one.
            self._known = {**self._known, name: found}
        return found[1]

    def read_tables(self) -> None:
        """Read now what is read once."""
        self.positions()
        if self._basis_size() == self.layout.basis_bytes:
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

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what was read: copies, in other processes too, read their own tables."""
        return {**self.__dict__, "_known": {}, "_was_read": bool(self._known)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Read again what the original had read: a compiler takes what is there."""
        was_read = state.pop("_was_read", False)
        super().__setstate__(state)
        if was_read:
            self.read_tables()

    # Tiers.

    def positions(self) -> RowPositions:
        """Return where each row is."""
        return self.known("positions", (self.codes, self.tier_index), self._read_positions)

    def _read_positions(self) -> RowPositions:
        rows = self.layout.coded_rows
        tiers = torch.zeros(rows, dtype=torch.int64, device=self.codes.device)
        if self.tier_index is not None:
            tiers = unpack_symbols(self.tier_index, rows, self.layout.tier_code_lengths)
        counts = torch.bincount(tiers, minlength=len(self.layout.tier_rows))
        return RowPositions(tiers.argsort(stable=True).argsort().int(), counts.cumsum(0) - counts)

    def tier_codes(self, tier: int) -> Tensor:
        """Return the codes (n, bytes) of a tier's rows."""
        rows, size = self.layout.tier_rows, self.layout.row_bytes()
        # Of one length: the compiler of torch 2.6 wants `zip` so.
        start = sum(count * width for count, width in zip(rows[:tier], size[:tier], strict=True))
        return self.codes[start : start + rows[tier] * size[tier]].view(rows[tier], size[tier])

    @torch.no_grad()
    def set_row_codes(self, tiers: Tensor, codes: list[Tensor]) -> None:
        """Store the tier of each row (V,) and the codes (n, bytes) of each tier."""
        self.codes.copy_(torch.cat([part.flatten() for part in codes]))
        if self.tier_index is not None:
            self.tier_index.copy_(pack_symbols(tiers.long(), self.layout.tier_code_lengths))

    @torch.no_grad()
    def keep_rows(self, count: int) -> None:
        """Drop the codes of the last rows, in every tier."""
        tiers = self.positions().of(slice(count))[0]
        kept = torch.bincount(tiers, minlength=len(self.layout.tier_rows)).tolist()
        codes = [self.tier_codes(tier)[:rows].clone() for tier, rows in enumerate(kept)]
        self.codes = torch.cat([part.flatten() for part in codes])
        if self.tier_index is not None:
            self.tier_index = pack_symbols(tiers, self.layout.tier_code_lengths)
        self.layout = dataclasses.replace(self.layout, tier_rows=tuple(kept), coded_rows=count)
        self.read_tables()

    # Axes.

    def axes(self) -> Tensor:
        """Return the basis (r, D). The only place that reads coded axes."""
        if self.basis is not None:
            return self.basis
        return self.directions().to(self.basis_gains) * self.basis_gains.unsqueeze(-1)

    def directions(self) -> Tensor:
        """Return coded axes (r, D) before their gains."""
        return self.known("basis", (self.basis_codes, self.basis_bits), self._read_basis)

    def _read_basis(self) -> Tensor:
        """Decode the axes (r, D), before their gains."""
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
        bits = [] if self.basis is not None else self.basis_bits.tolist()
        return sum(basis_entries(self.embedding_dim, count) * count // 8 for count in bits)

    @torch.no_grad()
    def set_coded_basis(self, codes: list[Tensor], bits: tuple[int, ...], gains: Tensor) -> None:
        """Store the axes as the codes, the bits of an entry, and the gain of each."""
        if bits:
            self.basis_codes.copy_(torch.cat([code.flatten() for code in codes]))
        self.basis_bits.copy_(torch.tensor(bits, dtype=torch.uint8))
        self.basis_gains.copy_(gains)

    # Both.

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw codes, means and axes at random; a random start has one tier."""
        self.codes.random_(0, 256)
        self.means.normal_(std=INITIAL_RANGE / 2)
        spread = INITIAL_RANGE / max(1, self.layout.rank) ** 0.5
        if self.basis is not None:
            self.basis.normal_(std=spread)
        else:
            self.basis_codes.random_(0, 256)
            self.basis_bits.fill_(RANDOM_BASIS_BITS)
            self.basis_gains.fill_(spread)

    def check_values(self) -> None:
        """Raise if tiers or bit tables do not fit to the codes."""
        super().check_values()
        layout = self.layout
        rows = torch.bincount(self.positions().of()[0], minlength=len(layout.tier_rows)).tolist()
        if tuple(rows) != layout.tier_rows:
            raise CheckpointError(f"`tier_index` puts {rows} rows into the tiers, `tier_rows` says {layout.tier_rows}.")
        if self.basis is None and layout.rank and int(self.basis_bits.max()) > MAX_BITS:
            raise CheckpointError(f"`basis_bits` holds {int(self.basis_bits.max())}, the most is {MAX_BITS}.")
        size = self._basis_size()
        if size != layout.basis_bytes:
            raise CheckpointError(f"`basis_bits` adds up to {size} bytes, `basis_bytes` is {layout.basis_bytes}.")
        self.read_tables()


class _State:
    """What changes when tables are written, replaced or moved. Inference tensors do not count writes."""

    def __init__(self, tables: tuple[Tensor | None, ...]) -> None:
        # Weak: the identity of a table that is gone may be that of another one by now.
        self.tables = [None if table is None else weakref.ref(table) for table in tables]
        self.versions = _versions(tables)

    def is_that_of(self, tables: tuple[Tensor | None, ...]) -> bool:
        """Whether these are the same tables, and as they were."""
        same = all(
            table is None if seen is None else seen() is table for seen, table in zip(self.tables, tables, strict=True)
        )
        return same and self.versions == _versions(tables)


def _versions(tables: tuple[Tensor | None, ...]) -> list[object]:
    return [
        None if table is None else (table.device, 0 if table.is_inference() else table._version) for table in tables
    ]


def stored_bytes(present: bool, *shape: int) -> Tensor | None:
    """Return bytes to fill, or None where a structure has no such table."""
    return torch.zeros(shape, dtype=torch.uint8) if present else None


def check_code(field: str, lengths: tuple[int, ...], symbols: int) -> None:
    """Raise unless codewords of these lengths tell so many symbols apart; one symbol has none."""
    if (len(lengths) != symbols or not is_complete(lengths)) if symbols > 1 else lengths:
        raise config_error(field, lengths, f"they are no lengths of codewords for {symbols:,} symbols")


def random_basis_bytes(options: TieredConfig, rank: int, width: int) -> int:
    """Return the bytes of a random start's coded axes."""
    entries = basis_entries(width, RANDOM_BASIS_BITS)
    return rank * packed_width(entries, RANDOM_BASIS_BITS) if options.basis == "coded" else 0


def basis_entries(width: int, bits: int) -> int:
    """Return to how many entries an axis (D,) is padded so that its code fills whole bytes and one window.

    Part of the format. An axis without bits has no code.
    """
    if not bits:
        return 0
    while width * bits % 8 or width * bits < MIN_WINDOW_BITS:
        width += 1
    return width
