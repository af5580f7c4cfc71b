"""Block embeddings: product quantisation in the table's principal axes, a byte for each block of axes of unequal width.

The first axes matter most, so blocks are narrow there and wide later, and the last axes are left out. Rows of a tier
take the codes of the first blocks, and more of them where their error costs more. Scores of hidden states come from
one small score table a block, by look-ups: unlike trellis codes, no row is decoded for them.

| tensor | shape | type | meaning |
|---|---|---|---|
| `codes` | (sum over tiers of rows · `tier_blocks`,) | uint8 | the entry of each block of a row, tier by tier |
| `codebooks` | (n, r) | float | all codebooks side by side, column i for axis i; or, with `codebooks="int8"`: |
| `entry_codes` | (n, r) | uint8 | their values in steps of 1/127 of the gain, 128 for zero |
| `gains` | (r,) | float | the largest value on each axis |
| `tier_index`, `means`, `basis…` | | | see `tiered` |

n is `codebook_size`. A row is its blocks' entries side by side, zero where it has no code, · basis + mean of its tier.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor, nn

from .codes import product_scores
from .errors import CheckpointError, config_error
from .options import STORAGE_DTYPES, choice, integer, integers
from .structure import register_structure
from .tiered import TieredConfig, TieredEmbedding, TieredLayout, random_basis_bytes, stored_bytes

LARGEST = 127


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlocksConfig(TieredConfig):
    """Options of block embeddings. A budget gives the size; none: 1 bit a value.

    Attributes:
        tiers: at most this many groups of rows, each with a number of blocks of its own.
        codebook_size: entries of each block's codebook.
        codebooks: "int8" stores their values in 8 bits, and trains only one length an axis; "float16" stores them as
            they are, and trains them.
        basis: "coded" stores the axes as trellis codes, and trains only their lengths; "float16" stores them as they
            are, and trains them.
        frequency_power: errors weigh (count + 1)^power when bytes are given out, where counts are known; None: 0.3,
            or 0.85 where an output head scores through the table.
        axis_power: the same for axes, means and codebooks; None: 0.75, or 1.0 with such a head.
        metric: what an error costs: "plain", its squared length; "sensitivity", how far it moves what the model gives:
            the scores of a head that is tied to the table, or else the states. "auto" is that, where there is a
            tokenizer, so that it can be found: in texts, or in texts that are made.
        iterations: rounds of k-means at the most.
    """

    method: ClassVar[str] = "blocks"

    codebook_size: int = integer(256, 2, 256)
    codebooks: str = choice("int8", "float16")
    iterations: int = integer(10, 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlocksLayout(TieredLayout):
    """Sizes of block embeddings.

    Attributes:
        codebook_size: n, entries of each codebook.
        tier_blocks: blocks that rows of each tier have codes for: the first ones.
        block_widths: axes in each block; together the rank.
    """

    codebook_size: int = integer(least=2, most=256)
    tier_blocks: tuple[int, ...] = integers()
    block_widths: tuple[int, ...] = integers(1)

    def row_bytes(self) -> tuple[int, ...]:
        """Return the bytes of a row's code in each tier: one a block."""
        return self.tier_blocks


@register_structure
class BlocksEmbedding(TieredEmbedding):
    """Row = its blocks' entries side by side · basis + mean of the tier; blocks without a code are zero."""

    options_class = BlocksConfig
    layout_class = BlocksLayout

    options: BlocksConfig
    layout: BlocksLayout
    entry_codes: Tensor
    gains: nn.Parameter
    codebooks: nn.Parameter | None

    def allocate(self) -> None:
        """Allocate the codebooks beside what tiers need."""
        super().allocate()
        options, layout = self.options, self.layout
        entries, rank, coded = layout.codebook_size, layout.rank, options.codebooks == "int8"
        self.register_buffer("entry_codes", stored_bytes(coded, entries, rank))
        self.register_parameter("gains", nn.Parameter(torch.empty(rank)) if coded else None)
        self.register_parameter("codebooks", None if coded else nn.Parameter(torch.empty(entries, rank)))

    @classmethod
    def layout_for(cls, options: BlocksConfig, rows: int, width: int, max_bytes: int | None = None) -> BlocksLayout:
        """Lay out a random start: one tier, and blocks of equal width."""
        budget = options.default_budget(rows, width) if max_bytes is None else max_bytes
        blocks = max(1, min(width, budget // rows))
        block_width, remainder = divmod(width, blocks)
        return BlocksLayout(
            coded_rows=rows,
            tier_rows=(rows,),
            tier_code_lengths=(),
            rank=width,
            basis_bytes=random_basis_bytes(options, width, width),
            codebook_size=options.codebook_size,
            tier_blocks=(blocks,),
            block_widths=(block_width,) * (blocks - remainder) + (block_width + 1,) * remainder,
        )

    def check_layout(self) -> None:
        """Raise if blocks do not add up."""
        super().check_layout()
        widths, blocks, rank = self.layout.block_widths, self.layout.tier_blocks, self.layout.rank
        if sum(widths) != rank:
            raise config_error("block_widths", widths, f"they must add up to the `rank`, {rank}")
        if max(blocks, default=0) > len(widths):
            raise config_error("tier_blocks", blocks, f"there are {len(widths)} blocks")

    # Reading.

    def entries(self) -> Tensor:
        """Return the codebooks side by side (n, r)."""
        if self.codebooks is not None:
            return self.codebooks
        # One byte holds -128 to 127, shifted by 128.
        return (self.entry_codes.to(self.gains.dtype) - (LARGEST + 1)) * (self.gains / LARGEST)

    def codes_of(self, ids: Tensor) -> Tensor:
        """Return the codes (n, f) of rows (n,), int64; `codebook_size` where the row's tier has none."""
        layout, (tiers, slots) = self.layout, self.positions().of(ids)
        widths = torch.tensor(layout.tier_blocks, device=ids.device)
        sizes = widths * torch.tensor(layout.tier_rows, device=ids.device)
        count = widths[tiers].unsqueeze(-1)
        block = torch.arange(len(layout.block_widths), device=ids.device)
        first = (sizes.cumsum(0) - sizes)[tiers] + slots * widths[tiers]
        index = torch.where(block < count, first.unsqueeze(-1) + block, 0)
        # Without any codes there is nothing to read, not even at index 0.
        codes = self.codes[index].long() if self.codes.numel() else index
        return torch.where(block < count, codes, layout.codebook_size)

    def coded_vectors(self, ids: Tensor) -> Tensor:
        """Look the entries up, and rotate them back."""
        flat = ids.reshape(-1)
        entries, widths = self.entries(), torch.tensor(self.layout.block_widths, dtype=torch.int64, device=ids.device)
        block_of_axis = torch.repeat_interleave(widths, output_size=entries.shape[1])
        none = entries.new_zeros(1, entries.shape[1])
        points = torch.cat([entries, none]).gather(0, self.codes_of(flat)[:, block_of_axis])
        vectors = points @ self.axes() + self.means[self.positions().of(flat)[0]]
        return vectors.view(*ids.shape, self.embedding_dim)

    def coded_scores(self, hidden: Tensor) -> Tensor:
        """Score the entries of each block once, then look up and add, tier by tier, and the means once a tier."""
        hidden, layout = hidden.float(), self.layout
        turned = (hidden @ self.axes().float().T).split(layout.block_widths, dim=1)
        blocks = self.entries().float().split(layout.block_widths, dim=1)
        tables = torch.stack([part @ query.T for part, query in zip(blocks, turned, strict=True)]) if blocks else None
        offsets = hidden @ self.means.float().T
        scores = []
        for tier, (rows, count) in enumerate(zip(layout.tier_rows, layout.tier_blocks, strict=True)):
            offset = offsets[:, tier : tier + 1]
            if count and rows and tables is not None:
                scores.append(product_scores(tables[:count], self.tier_codes(tier), 8) + offset)
            else:
                scores.append(offset.expand(-1, rows))
        if len(scores) == 1:
            return scores[0]
        # Whole rows are moved faster than columns.
        stacked = torch.cat([part.T for part in scores])
        return stacked.index_select(0, self.positions().places).T

    # Writing.

    @torch.no_grad()
    def set_entries(self, codebooks: Tensor) -> None:
        """Store the codebooks side by side (n, r): as they are, or in bytes after the gain of each axis."""
        if self.codebooks is not None:
            self.codebooks.copy_(codebooks)
            return
        # Rounded as it will be stored, so that the bytes are right for it.
        self.gains.copy_(codebooks.abs().amax(0).to(STORAGE_DTYPES[self.options.storage_dtype]))
        steps = codebooks * (LARGEST / self.gains.clamp(min=torch.finfo(torch.float32).tiny))
        self.entry_codes.copy_(steps.round().clamp(-LARGEST, LARGEST) + (LARGEST + 1))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw everything at random."""
        super().reset_parameters()
        self.codes.random_(0, self.layout.codebook_size)
        if self.codebooks is not None:
            self.codebooks.normal_()
            return
        self.entry_codes.random_(1, 256)
        # Evenly drawn values spread by 1 / sqrt(3) of the largest.
        self.gains.fill_(3**0.5)

    def check_values(self) -> None:
        """Raise if a code is no entry of its codebook."""
        super().check_values()
        largest = int(self.codes.max()) if self.codes.numel() else 0
        if largest >= self.layout.codebook_size:
            raise CheckpointError(f"`codes` holds {largest}, `codebook_size` is {self.layout.codebook_size}.")
