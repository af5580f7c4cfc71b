"""Subspace embeddings: a row is the concatenation of one entry from each of f small tables."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .codes import MAX_BITS, bits_for, draw_codes_, pack_codes, packed_width, product_scores, unpack_codes
from .configuration import STORAGE_DTYPES, StructureConfig
from .errors import CheckpointError, config_error
from .structure import CompactEmbedding, register_structure

# The range that tables start from when trained from scratch (Jaiswal & Liu, 2023).
_INITIAL_RANGE = 0.1
# Codebook sizes worth trying, and with how many subspaces at most: beyond, smaller ones do as well in less time.
_CANDIDATE_ENTRIES = {16: 1 << 30, 256: 1 << 30, 1024: 48}
_CANDIDATE_DIGITS = (2, 3, 4)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SubspaceConfig(StructureConfig):
    """Configuration of subspace embeddings.

    Attributes:
        num_subspaces: f, the slices of a row; the last takes the remainder of D / f.
        codebook_size: n, the rows of each table. None: 256 for "cluster"; for "dispersed" the smallest
            count of the paper, floor(V^(1/f)) + 1, with which all tuples differ.
        assignment: which entries a token uses. "cluster": learned by k-means, stored as codes.
            "dispersed": the digits of the token's id in base n, computed and not stored.
        frequency_power: tokens weigh (count + 1)^power in the fit, where counts are known.
        features: what "cluster" clusters: "table", its rows; "contextual", each token's mean contextual
            state over texts.
        unique_codes: move colliding tokens to the next best entries until all tuples differ.
        iterations: rounds of k-means at the most.
    """

    method: ClassVar[str] = "subspace"

    num_subspaces: int = 8
    codebook_size: int | None = None
    assignment: str = "cluster"
    frequency_power: float = 0.5
    features: str = "table"
    unique_codes: bool = False
    iterations: int = 25

    def __post_init__(self) -> None:
        """Check the fields."""
        super().__post_init__()
        self.require_integer("num_subspaces", 1)
        self.require_choice("assignment", ("cluster", "dispersed"))
        if self.codebook_size is not None:
            self.require_integer("codebook_size", 1, 1 << MAX_BITS)
        self.require_number("frequency_power", 0.0, 4.0)
        self.require_choice("features", ("table", "contextual"))
        self.require_choice("unique_codes", (True, False))
        self.require_integer("iterations", 1)

    def resolved(self, num_embeddings: int, embedding_dim: int) -> Self:
        """Fill in the codebook size and check the subspaces against the width."""
        config = super().resolved(num_embeddings, embedding_dim)
        if self.num_subspaces > embedding_dim:
            raise config_error("num_subspaces", self.num_subspaces, f"the table is only {embedding_dim} wide")
        if config.codebook_size is None:
            assert config.coded_rows is not None
            dispersed = config.assignment == "dispersed"
            size = smallest_base(config.coded_rows, config.num_subspaces) if dispersed else 256
            config = dataclasses.replace(config, codebook_size=size)
        return config

    @classmethod
    def candidates(cls, num_embeddings: int, embedding_dim: int, max_bytes: int) -> list[Self]:
        """Return, for several codebook sizes, the most subspaces that fit; and the paper's dispersed tuples."""
        size = STORAGE_DTYPES[cls().storage_dtype].itemsize
        found = []
        for entries in _CANDIDATE_ENTRIES:
            spare = max_bytes - entries * embedding_dim * size
            # Whole bytes a row, as many codes as they hold; but no last slice of more than twice the width.
            subspaces = min(embedding_dim, 8 * (spare // num_embeddings) // bits_for(entries))
            while subspaces > 0 and embedding_dim % subspaces > embedding_dim // subspaces:
                subspaces -= 1
            if 0 < subspaces <= _CANDIDATE_ENTRIES[entries] and entries <= num_embeddings // 2:
                found.append(cls(num_subspaces=subspaces, codebook_size=entries))
        if not found:
            for subspaces in _CANDIDATE_DIGITS:
                if smallest_base(num_embeddings, subspaces) * embedding_dim * size <= max_bytes:
                    found.append(cls(num_subspaces=subspaces, assignment="dispersed"))
        return found

    def head_cost(self, num_embeddings: int, embedding_dim: int) -> float:
        """Score each entry once, then look f scores up for each row."""
        config = self.resolved(num_embeddings, embedding_dim)
        assert config.codebook_size is not None
        return float(config.codebook_size * embedding_dim + num_embeddings * config.num_subspaces)


def smallest_base(count: int, digits: int) -> int:
    """Return floor(count^(1/digits)) + 1, exactly: the paper's rows per table for `count` tokens."""
    root = round(count ** (1 / digits))
    # The floating-point root can be one off where count is a perfect power.
    while root**digits > count:
        root -= 1
    while (root + 1) ** digits <= count:
        root += 1
    return root + 1


@register_structure(SubspaceConfig)
class SubspaceEmbedding(CompactEmbedding):
    """Tables of equal width in `codebooks` (f', n, d); a wider last one, if f does not divide D, by itself."""

    config: SubspaceConfig
    codes: Tensor | None
    last_codebook: nn.Parameter | None

    def __init__(
        self,
        config: SubspaceConfig,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        scale: float = 1.0,
    ) -> None:
        """Allocate tables and codes."""
        super().__init__(config, num_embeddings, embedding_dim, padding_idx, scale)
        width, remainder = divmod(embedding_dim, self.config.num_subspaces)
        equal = self.config.num_subspaces - (1 if remainder else 0)
        self.codebooks = nn.Parameter(torch.empty(equal, self.entries, width))
        last = nn.Parameter(torch.empty(self.entries, width + remainder)) if remainder else None
        self.register_parameter("last_codebook", last)
        stored = None
        if self.config.assignment == "cluster":
            shape = (self.coded_rows, packed_width(self.config.num_subspaces, self.code_bits))
            stored = torch.empty(shape, dtype=torch.uint8)
        self.register_buffer("codes", stored)

    @property
    def entries(self) -> int:
        """Rows of each table, n."""
        assert self.config.codebook_size is not None
        return self.config.codebook_size

    @property
    def code_bits(self) -> int:
        """Bits of a stored code."""
        return bits_for(self.entries)

    def codes_of(self, ids: Tensor) -> Tensor:
        """Return the tuples (..., f) of ids (...), as int64."""
        if self.codes is None:
            digits, rest = [], ids
            for _ in range(self.config.num_subspaces):
                digits.append(rest % self.entries)
                rest = rest // self.entries
            return torch.stack(digits, dim=-1)
        rows = self.codes.index_select(0, ids.reshape(-1))
        codes = unpack_codes(rows, self.config.num_subspaces, self.code_bits)
        return codes.view(*ids.shape, self.config.num_subspaces)

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
        every = torch.arange(self.coded_rows, device=hidden.device)
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
            draw_codes_(self.codes, self.config.num_subspaces, self.code_bits, self.entries)

    def keep_rows(self, count: int) -> None:
        """Drop the tuples of the last rows; the tables stay."""
        if self.codes is not None:
            self.codes = self.codes[:count].clone()

    def check_values(self) -> None:
        """Raise if a stored code is no row of its table."""
        super().check_values()
        if self.codes is None or self.entries == 1 << self.code_bits:
            return
        largest = int(unpack_codes(self.codes, self.config.num_subspaces, self.code_bits).max())
        if largest >= self.entries:
            raise CheckpointError(f"`codes` holds {largest}, but `codebook_size` is {self.entries}.")

    def collisions(self) -> int:
        """Return how many rows have the tuple of an earlier row."""
        every = torch.arange(self.coded_rows, device=self.device)
        return self.coded_rows - int(torch.unique(self.codes_of(every), dim=0).shape[0])
