"""Scalar embeddings: every value rounded to 2, 4 or 8 bits, with a scale for each group of values.

| tensor | shape | type | meaning |
|---|---|---|---|
| `codes` | (V, ceil(D · bits / 8)) | uint8 | the level of each value, packed with the lowest bit first |
| `scales` | (V, D / group_size) | float | how far the levels of a group are apart |

V are the coded rows. A value is (level - (2^bits - 1) / 2) · scale of its group.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .codes import decoded_scores, draw_codes_, pack_codes, packed_width, unpack_codes
from .errors import config_error
from .options import StructureConfig, StructureLayout, choice, integer
from .structure import CompactEmbedding, register_structure

_INITIAL_RANGE = 0.02
_DEFAULT_BITS = 8
# Smaller groups follow the values more closely and take more scales.
_GROUP_SIZES = (16, 32, 64, 128)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScalarConfig(StructureConfig):
    """Options of scalar embeddings, the baseline of all quantisation.

    Attributes:
        bits: of each value, 2, 4 or 8; None: the most that the budget allows, or 8.
        group_size: values that share a scale; must divide the width. None: the smallest groups that the budget allows,
            or a scale for each row.
        metric: what an error costs: "plain", its squared length; "sensitivity", how far it moves what the model gives,
            so that the errors of a row make up for each other. "auto" is that, where there is a tokenizer.
    """

    method: ClassVar[str] = "scalar"

    bits: int | None = choice(None, 2, 4, 8)
    group_size: int | None = integer(None, 1)
    metric: str = choice("auto", "plain", "sensitivity")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScalarLayout(StructureLayout):
    """Sizes of scalar embeddings.

    Attributes:
        bits: of each value.
        group_size: values that share a scale.
    """

    bits: int = integer(least=2, most=8)
    group_size: int = integer(least=1)


@register_structure
class ScalarEmbedding(CompactEmbedding):
    """A value is (code - middle) · scale of its group; the levels lie evenly on both sides of zero."""

    options_class = ScalarConfig
    layout_class = ScalarLayout

    options: ScalarConfig
    layout: ScalarLayout
    codes: Tensor

    def allocate(self) -> None:
        """Allocate codes and scales."""
        layout = self.layout
        self.groups = self.embedding_dim // layout.group_size
        self.scales = nn.Parameter(torch.empty(layout.coded_rows, self.groups))
        shape = (layout.coded_rows, packed_width(self.embedding_dim, layout.bits))
        self.register_buffer("codes", torch.empty(shape, dtype=torch.uint8))

    @classmethod
    def layout_for(cls, options: ScalarConfig, rows: int, width: int, max_bytes: int | None = None) -> ScalarLayout:
        """Take the most bits that fit, then the smallest groups."""
        bits = (options.bits,) if options.bits else (8, 4, 2)
        sizes: tuple[int, ...] = (options.group_size,) if options.group_size else (*_GROUP_SIZES, width)
        if max_bytes is None:
            return ScalarLayout(
                coded_rows=rows, bits=options.bits or _DEFAULT_BITS, group_size=options.group_size or width
            )
        possible = [
            (rows * (packed_width(width, count) + width // group * options.float_bytes), count, group)
            for count in bits
            for group in sizes
            if width % group == 0
        ]
        fitting = [(count, group) for taken, count, group in possible if taken <= max_bytes]
        if not fitting:
            least = min((taken for taken, _, _ in possible), default=0)
            raise config_error("max_bytes", max_bytes, f"the least bits and scales take {least:,} bytes")
        return ScalarLayout(coded_rows=rows, bits=fitting[0][0], group_size=fitting[0][1])

    def check_layout(self) -> None:
        """Raise if the bits do not pack, or the groups do not divide the width."""
        super().check_layout()
        if self.layout.bits not in (2, 4, 8):
            raise config_error("bits", self.layout.bits, "allowed are 2, 4, 8")
        if self.embedding_dim % self.layout.group_size:
            allowed = f"it must divide the table's width of {self.embedding_dim:,}"
            raise config_error("group_size", self.layout.group_size, allowed)

    def _values(self, codes: Tensor, scales: Tensor) -> Tensor:
        """Return the values (..., D) of packed codes and the scales (..., groups) of their groups."""
        steps = unpack_codes(codes, self.embedding_dim, self.layout.bits).to(scales.dtype)
        centred = steps - middle(self.layout.bits)
        return (centred.unflatten(-1, (self.groups, -1)) * scales.unsqueeze(-1)).flatten(-2)

    def coded_vectors(self, ids: Tensor) -> Tensor:
        """Read the values of the ids' rows."""
        codes = self.codes.index_select(0, ids.reshape(-1)).view(*ids.shape, self.codes.shape[1])
        return self._values(codes, F.embedding(ids, self.scales))

    def coded_scores(self, hidden: Tensor) -> Tensor:
        """Score some rows at a time."""

        def decode(start: int, stop: int) -> Tensor:
            return self._values(self.codes[start:stop], self.scales[start:stop].float())

        return decoded_scores(hidden.float(), self.layout.coded_rows, decode)

    @torch.no_grad()
    def set_codes(self, codes: Tensor, scales: Tensor) -> None:
        """Store codes (V, D) and scales (V, groups)."""
        self.codes.copy_(pack_codes(codes, self.layout.bits))
        self.scales.copy_(scales)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw codes at random, at the usual spread."""
        levels = 1 << self.layout.bits
        draw_codes_(self.codes, self.embedding_dim, self.layout.bits, levels)
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
