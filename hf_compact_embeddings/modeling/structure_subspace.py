"""Subspace embeddings: a row is the concatenation of one entry from each of f small tables, its codebooks.

| tensor | shape | type | meaning |
|---|---|---|---|
| `codebooks` | (f', n, D // f) | float | the codebooks of equal width: f of them, or f - 1 where f does not divide D |
| `last_codebook` | (n, D // f + D % f) | float | the wider last codebook; only where f does not divide D |
| `codes` | (V, ceil(f · b / 8)) | uint8 | f codes a row of b = ceil(log2 n) bits, lowest bit first; only of clusters |

V are the coded rows. For `assignment="dispersed"` the codes are the digits of the row's id in base n, lowest first.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .codes import MAX_BITS, bits_for, draw_codes_, pack_codes, packed_width, product_scores, unpack_codes
from .errors import CheckpointError, config_error
from .options import StructureConfig, StructureLayout, choice, flag, integer, number
from .structure import CompactEmbedding, register_structure

# The range that tables start from when trained from scratch (Jaiswal & Liu, 2023).
_INITIAL_RANGE = 0.1
_DEFAULT_SUBSPACES = 8
_DEFAULT_ENTRIES = 256
# The most digits that dispersed tuples are tried with: tables of two rows would need no more.
_MOST_DIGITS = 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class SubspaceConfig(StructureConfig):
    """Options of subspace embeddings.

    Attributes:
        num_subspaces: f, the slices of a row; the last takes the remainder of D / f. None: as many as the budget allows
            (of dispersed digits, as few), or 8.
        codebook_size: n, the entries of each codebook. None: 256 for "cluster"; for "dispersed" the smallest count of
            the paper, floor(V^(1/f)) + 1, with which all tuples differ.
        assignment: which entries a token uses. "cluster": learned by k-means, stored as codes.
            "dispersed": the digits of the token's id in base n, computed and not stored.
        frequency_power: tokens weigh (count + 1)^power in the fit, where counts are known.
        features: what "cluster" clusters: "table", its rows; "contextual", each token's mean contextual
            state over texts.
        unique_codes: move colliding tokens to the next best entries until all tuples differ.
        iterations: rounds of k-means at the most.
    """

    method: ClassVar[str] = "subspace"

    num_subspaces: int | None = integer(None, 1)
    codebook_size: int | None = integer(None, 1, 1 << MAX_BITS)
    assignment: str = choice("cluster", "dispersed")
    frequency_power: float = number(0.5, 0.0, 4.0)
    features: str = choice("table", "contextual")
    unique_codes: bool = flag()
    iterations: int = integer(25, 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SubspaceLayout(StructureLayout):
    """Sizes of subspace embeddings.

    Attributes:
        num_subspaces: f, the codes of a row.
        codebook_size: n, the entries of each codebook.
        stored_codes: whether tuples are stored, or the digits of ids.
    """

    num_subspaces: int = integer(least=1)
    codebook_size: int = integer(least=1, most=1 << MAX_BITS)
    stored_codes: bool = flag(True)


def smallest_base(count: int, digits: int) -> int:
    """Return floor(count^(1/digits)) + 1, exactly: the paper's rows per table for `count` tokens."""
    if digits >= count.bit_length():
        # Two entries are enough; a power of so many digits would be a number without end.
        return 2
    root = round(count ** (1 / digits))
    # The floating-point root can be one off where count is a perfect power.
    while root**digits > count:
        root -= 1
    while (root + 1) ** digits <= count:
        root += 1
    return root + 1


def _most_codes(options: SubspaceConfig, rows: int, width: int, max_bytes: int) -> int:
    """Return how many codes of a row fit beside their codebooks."""
    entries = options.codebook_size or _DEFAULT_ENTRIES
    spare = max_bytes - entries * width * options.float_bytes
    count = min(width, 8 * (spare // rows) // bits_for(entries))
    # No last slice of more than twice the width of the others.
    while count > 0 and width % count > width // count:
        count -= 1
    if count < 1:
        least = entries * width * options.float_bytes + rows * packed_width(1, bits_for(entries))
        raise config_error(
            "max_bytes", max_bytes, f"codebooks of {entries:,} entries and one code a row take {least:,} bytes"
        )
    return count


def _fewest_digits(options: SubspaceConfig, rows: int, width: int, max_bytes: int) -> int:
    """Return how many digits of ids give tables that fit: the fewer, the larger and better the tables."""
    taken = {
        count: (options.codebook_size or smallest_base(rows, count)) * width * options.float_bytes
        for count in range(1, min(width, _MOST_DIGITS) + 1)
    }
    fitting = [count for count, size in taken.items() if size <= max_bytes]
    if not fitting:
        raise config_error("max_bytes", max_bytes, f"the smallest tables take {min(taken.values()):,} bytes")
    return fitting[0]


@register_structure
class SubspaceEmbedding(CompactEmbedding):
    """Tables of equal width in `codebooks` (f', n, d); a wider last one, if f does not divide D, by itself."""

    options_class = SubspaceConfig
    layout_class = SubspaceLayout

    options: SubspaceConfig
    layout: SubspaceLayout
    codes: Tensor | None
    last_codebook: nn.Parameter | None

    def allocate(self) -> None:
        """Allocate codebooks and codes."""
        layout = self.layout
        width, remainder = divmod(self.embedding_dim, layout.num_subspaces)
        equal = layout.num_subspaces - (1 if remainder else 0)
        self.entries, self.code_bits = layout.codebook_size, bits_for(layout.codebook_size)
        self.codebooks = nn.Parameter(torch.empty(equal, self.entries, width))
        last = nn.Parameter(torch.empty(self.entries, width + remainder)) if remainder else None
        self.register_parameter("last_codebook", last)
        shape = (layout.coded_rows, packed_width(layout.num_subspaces, self.code_bits))
        self.register_buffer("codes", torch.empty(shape, dtype=torch.uint8) if layout.stored_codes else None)

    @classmethod
    def layout_for(cls, options: SubspaceConfig, rows: int, width: int, max_bytes: int | None = None) -> SubspaceLayout:
        """Take the most codes of whole bytes a row that fit; of dispersed tuples, the fewest digits."""
        stored = options.assignment == "cluster"
        count, entries = options.num_subspaces, options.codebook_size
        if count is None and max_bytes is not None:
            count = (_most_codes if stored else _fewest_digits)(options, rows, width, max_bytes)
        count = count or _DEFAULT_SUBSPACES
        if entries is None:
            entries = _DEFAULT_ENTRIES if stored else smallest_base(rows, count)
        return SubspaceLayout(coded_rows=rows, num_subspaces=count, codebook_size=entries, stored_codes=stored)

    def check_layout(self) -> None:
        """Raise if there are more subspaces than columns, or codes where none are asked for."""
        super().check_layout()
        if self.layout.stored_codes != (self.options.assignment == "cluster"):
            allowed = f"`assignment` is {self.options.assignment!r}"
            raise config_error("stored_codes", self.layout.stored_codes, allowed)
        if self.layout.num_subspaces > self.embedding_dim:
            allowed = f"the table is only {self.embedding_dim} wide"
            raise config_error("num_subspaces", self.layout.num_subspaces, allowed)

    def codes_of(self, ids: Tensor) -> Tensor:
        """Return the tuples (..., f) of ids (...), as int64."""
        if self.codes is None:
            digits, rest = [], ids
            for _ in range(self.layout.num_subspaces):
                digits.append(rest % self.entries)
                rest = rest // self.entries
            # What is no row has no entry in the last table either.
            digits[-1] = digits[-1].where(ids < self.layout.coded_rows, self.codebooks.shape[0] * self.entries)
            return torch.stack(digits, dim=-1)
        rows = self.codes.index_select(0, ids.reshape(-1))
        codes = unpack_codes(rows, self.layout.num_subspaces, self.code_bits)
        return codes.view(*ids.shape, self.layout.num_subspaces)

    def coded_vectors(self, ids: Tensor) -> Tensor:
        """Concatenate the entries that the ids' tuples name."""
        codes = self.codes_of(ids)
        equal, entries, width = self.codebooks.shape
        first_entry = torch.arange(0, equal * entries, entries, device=ids.device)
        flat = self.codebooks.view(equal * entries, width)
        if self.last_codebook is None:
            return F.embedding(codes.add_(first_entry), flat).flatten(-2)
        last = F.embedding(codes[..., -1], self.last_codebook)
        return torch.cat([F.embedding(codes[..., :-1] + first_entry, flat).flatten(-2), last], dim=-1)

    def coded_scores(self, hidden: Tensor) -> Tensor:
        """Score f x n entries once, then look up and add f of them for each row."""
        equal, _, width = self.codebooks.shape
        slices = hidden[:, : equal * width].float().view(-1, equal, width)
        tables = torch.einsum("nfd,fkd->fkn", slices, self.codebooks.float())
        if self.last_codebook is not None:
            last = self.last_codebook.float() @ hidden[:, equal * width :].float().T
            tables = torch.cat([tables, last.unsqueeze(0)])
        if self.codes is not None:
            return product_scores(tables, self.codes, self.code_bits)
        every = torch.arange(self.layout.coded_rows, device=hidden.device)
        return product_scores(tables, pack_codes(self.codes_of(every), self.code_bits), self.code_bits)

    @torch.no_grad()
    def set_tables(self, tables: Tensor, codes: Tensor | None) -> None:
        """Store tables given side by side (n, D) and, for stored assignments, the tuples (V, f)."""
        equal, entries, width = self.codebooks.shape
        self.codebooks.copy_(tables[:, : equal * width].view(entries, equal, width).transpose(0, 1))
        if self.last_codebook is not None:
            self.last_codebook.copy_(tables[:, equal * width :])
        if self.codes is not None and codes is not None:
            self.codes.copy_(pack_codes(codes, self.code_bits))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Fill the tables uniformly as the paper does; stored tuples are drawn at random."""
        for table in (self.codebooks, self.last_codebook):
            if table is not None:
                table.uniform_(-_INITIAL_RANGE, _INITIAL_RANGE)
        if self.codes is not None:
            draw_codes_(self.codes, self.layout.num_subspaces, self.code_bits, self.entries)

    def keep_rows(self, count: int) -> None:
        """Drop the tuples of the last rows; the tables stay."""
        if self.codes is not None:
            self.codes = self.codes[:count].clone()

    def check_values(self) -> None:
        """Raise if a stored code is no row of its table."""
        super().check_values()
        if self.codes is None or self.entries == 1 << self.code_bits:
            return
        largest = int(unpack_codes(self.codes, self.layout.num_subspaces, self.code_bits).max())
        if largest >= self.entries:
            raise CheckpointError(f"`codes` holds {largest}, but `codebook_size` is {self.entries}.")
