"""Scalar embeddings: every value rounded to 2, 4 or 8 bits, with a scale for each group of values."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .codes import draw_codes_, pack_codes, packed_width, unpack_codes
from .configuration import STORAGE_DTYPES, StructureConfig
from .decoded_scores import decoded_scores
from .errors import config_error
from .structure import CompactEmbedding, register_structure

_INITIAL_RANGE = 0.02


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScalarConfig(StructureConfig):
    """Configuration of scalar embeddings, the baseline of all quantisation.

    Attributes:
        bits: of each value.
        group_size: values that share a scale; must divide the width. None: a scale for each row.
    """

    method: ClassVar[str] = "scalar"

    bits: int = 8
    group_size: int | None = None

    def __post_init__(self) -> None:
        """Check the fields."""
        super().__post_init__()
        self.require_choice("bits", (2, 4, 8))
        if self.group_size is not None:
            self.require_integer("group_size", 1)

    def resolved(self, num_embeddings: int, embedding_dim: int) -> Self:
        """Fill in the group size and check it against the width."""
        config = super().resolved(num_embeddings, embedding_dim)
        size = self.group_size or embedding_dim
        if embedding_dim % size:
            raise config_error("group_size", size, f"it must divide the table's width of {embedding_dim:,}")
        return dataclasses.replace(config, group_size=size)

    @classmethod
    def candidates(cls, num_embeddings: int, embedding_dim: int, max_bytes: int) -> list[Self]:
        """Return every number of bits that fits, with the smallest groups that fit."""
        size = STORAGE_DTYPES[cls().storage_dtype].itemsize
        found = []
        for bits in (8, 4, 2):
            spare = max_bytes - num_embeddings * packed_width(embedding_dim, bits)
            groups = [g for g in (16, 32, 64, 128, embedding_dim) if embedding_dim % g == 0 and g <= embedding_dim]
            fitting = [g for g in groups if num_embeddings * (embedding_dim // g) * size <= spare]
            if fitting:
                found.append(cls(bits=bits, group_size=fitting[0]))
        return found


@register_structure(ScalarConfig)
class ScalarEmbedding(CompactEmbedding):
    """A value is (code - middle) · scale of its group; the levels lie evenly on both sides of zero."""

    config: ScalarConfig
    codes: Tensor

    def __init__(
        self,
        config: ScalarConfig,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        scale: float = 1.0,
    ) -> None:
        """Allocate codes and scales."""
        super().__init__(config, num_embeddings, embedding_dim, padding_idx, scale)
        assert self.config.group_size is not None
        self.groups = embedding_dim // self.config.group_size
        self.scales = nn.Parameter(torch.empty(self.coded_rows, self.groups))
        shape = (self.coded_rows, packed_width(embedding_dim, self.config.bits))
        self.register_buffer("codes", torch.empty(shape, dtype=torch.uint8))

    def _values(self, codes: Tensor, scales: Tensor) -> Tensor:
        """Return the values (..., D) of packed codes and the scales (..., groups) of their groups."""
        steps = unpack_codes(codes, self.embedding_dim, self.config.bits).to(scales.dtype)
        centred = steps - middle(self.config.bits)
        return (centred.unflatten(-1, (self.groups, -1)) * scales.unsqueeze(-1)).flatten(-2)

    def coded_vectors(self, ids: Tensor) -> Tensor:
        """Read the values of the ids' rows."""
        codes = self.codes.index_select(0, ids.reshape(-1)).view(*ids.shape, self.codes.shape[1])
        return self._values(codes, F.embedding(ids, self.scales))

    def coded_scores(self, hidden: Tensor) -> Tensor:
        """Score some rows at a time."""

        def decode(start: int, stop: int) -> Tensor:
            return self._values(self.codes[start:stop], self.scales[start:stop].float())

        return decoded_scores(hidden.float(), self.coded_rows, decode)

    @torch.no_grad()
    def set_codes(self, codes: Tensor, scales: Tensor) -> None:
        """Store codes (V, D) and scales (V, groups)."""
        self.codes.copy_(pack_codes(codes, self.config.bits))
        self.scales.copy_(scales)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw codes at random, at the usual spread."""
        levels = 1 << self.config.bits
        draw_codes_(self.codes, self.embedding_dim, self.config.bits, levels)
        # Codes drawn evenly spread over levels / sqrt(12) steps.
        self.scales.fill_(_INITIAL_RANGE * 12**0.5 / levels)

    @torch.no_grad()
    def keep_rows(self, count: int) -> None:
        """Drop the codes and scales of the last rows."""
        self.codes = self.codes[:count].clone()
        self.scales = nn.Parameter(self.scales[:count].clone(), requires_grad=self.scales.requires_grad)


def middle(bits: int) -> float:
    """Return what stands for zero among the codes of so many bits: half-way between the two middle codes."""
    return ((1 << bits) - 1) / 2
