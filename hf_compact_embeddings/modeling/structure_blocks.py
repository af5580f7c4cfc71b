"""Block embeddings: product codes in the table's principal axes, a byte for each block of axes of unequal width.

The first axes matter most, so blocks are narrow there and wide later, and the last axes are left out. Rows of a tier
take the codes of the first blocks, and more of them where their error costs more. Scores of hidden states come from
one small score table a block, by look-ups: unlike trellis codes, no row is decoded for them.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from .codes import product_scores
from .configuration import STORAGE_DTYPES
from .errors import CheckpointError
from .structure import register_structure
from .tiered import TieredConfig, TieredEmbedding, stored_table

_LARGEST = 127


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlocksConfig(TieredConfig):
    """Configuration of block embeddings. One of `max_bytes` and `bits_per_weight` gives the size; none: 1 bit.

    Attributes:
        max_bytes: the bytes to spend; rows kept exactly come on top.
        bits_per_weight: the same, as bits for each value of the table.
        tiers: at most this many groups of rows, each with a number of blocks of its own.
        codebook_size: entries of each block's codebook.
        codebooks: "int8" stores their values in 8 bits, and trains only one length an axis; "float16" stores them as
            they are, and trains them.
        basis: "coded" stores the axes as trellis codes, and trains only their lengths; "float16" stores them as they
            are, and trains them.
        frequency_power: errors weigh (count + 1)^power when bytes are given out, where counts are known; None: 0.3,
            or 0.75 where an output head scores through the table.
        axis_power: the same for axes, means and codebooks; None: 0.75, or 1.0 with such a head.
        metric: what an error costs: "plain", its squared length; "sensitivity", how far it moves what the model gives
            over `texts`: the scores of a head that is tied to the table, or else the states.
        iterations: rounds of k-means at the most.
        tier_rows: rows in each tier. Set by the fit, as are the next four.
        tier_blocks: blocks that rows of each tier have codes for.
        block_widths: axes in each block.
        rank: axes in all blocks.
        basis_bytes: bytes of all coded axes.
    """

    method: ClassVar[str] = "blocks"

    codebook_size: int = 256
    codebooks: str = "int8"
    iterations: int = 10
    tier_blocks: tuple[int, ...] = ()
    block_widths: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Check the fields."""
        super().__post_init__()
        self.require_integer("codebook_size", 2, 256)
        self.require_choice("codebooks", ("int8", "float16"))
        self.require_integer("iterations", 1)

    def resolved(self, num_embeddings: int, embedding_dim: int) -> Self:
        """Lay out a random start where no fit has set the shapes: one tier, and blocks of equal width."""
        config = super().resolved(num_embeddings, embedding_dim)
        if self.rank is not None:
            return config
        assert config.coded_rows is not None
        budget = self.budget(config.coded_rows, embedding_dim)
        blocks = max(1, min(embedding_dim, budget // config.coded_rows))
        width, remainder = divmod(embedding_dim, blocks)
        return dataclasses.replace(
            config,
            tier_rows=(config.coded_rows,),
            tier_blocks=(blocks,),
            block_widths=(width,) * (blocks - remainder) + (width + 1,) * remainder,
            rank=embedding_dim,
            basis_bytes=self.random_basis_bytes(embedding_dim, embedding_dim),
        )

    def row_bytes(self) -> tuple[int, ...]:
        """Return the bytes of a row's code in each tier: one a block."""
        return self.tier_blocks

    @classmethod
    def candidates(cls, num_embeddings: int, embedding_dim: int, max_bytes: int) -> list[Self]:
        """Spend the budget, where a codebook is small beside the table."""
        enough = max_bytes >= num_embeddings // 4 + 16 * embedding_dim
        return [cls(max_bytes=max_bytes)] if enough and num_embeddings >= 2 * cls().codebook_size else []

    def head_cost(self, num_embeddings: int, embedding_dim: int) -> float:
        """Turn into the axes, score each entry once, then one look-up a code; before a fit, of the bytes to spend."""
        if self.rank is None:
            rank, codes = embedding_dim, self.budget(num_embeddings, embedding_dim)
        else:
            rank = self.rank
            codes = sum(rows * blocks for rows, blocks in zip(self.tier_rows, self.tier_blocks, strict=True))
        return float(rank * (embedding_dim + self.codebook_size) + codes)


@register_structure(BlocksConfig)
class BlocksEmbedding(TieredEmbedding):
    """Row = its blocks' entries side by side · basis + mean of the tier; blocks without a code are zero."""

    config: BlocksConfig
    entry_codes: Tensor | None
    gains: nn.Parameter | None
    codebooks: nn.Parameter | None

    def __init__(
        self,
        config: BlocksConfig,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        scale: float = 1.0,
    ) -> None:
        """Allocate the codebooks beside what tiers need."""
        super().__init__(config, num_embeddings, embedding_dim, padding_idx, scale)
        entries, rank, coded = self.config.codebook_size, self.config.rank, self.config.codebooks == "int8"
        assert rank is not None
        # All codebooks side by side: column i belongs to axis i.
        self.register_buffer("entry_codes", stored_table(coded, entries, rank))
        self.register_parameter("gains", nn.Parameter(torch.empty(rank)) if coded else None)
        self.register_parameter("codebooks", None if coded else nn.Parameter(torch.empty(entries, rank)))

    # Reading.

    def entries(self) -> Tensor:
        """Return the codebooks side by side (n, r)."""
        if self.codebooks is not None:
            return self.codebooks
        assert self.entry_codes is not None and self.gains is not None
        # One byte holds -128 to 127, shifted by 128.
        return (self.entry_codes.to(self.gains.dtype) - (_LARGEST + 1)) * (self.gains / _LARGEST)

    def codes_of(self, ids: Tensor) -> Tensor:
        """Return the codes (n, f) of rows (n,), int64; `codebook_size` where the row's tier has none."""
        config, places = self.config, self.places()
        widths = torch.tensor(config.tier_blocks, device=ids.device)
        sizes = widths * torch.tensor(config.tier_rows, device=ids.device)
        tiers = places.tiers[ids]
        count = widths[tiers].unsqueeze(-1)
        block = torch.arange(len(config.block_widths), device=ids.device)
        first = (sizes.cumsum(0) - sizes)[tiers] + places.slots[ids] * widths[tiers]
        index = torch.where(block < count, first.unsqueeze(-1) + block, 0)
        # Without any codes there is nothing to read, not even at index 0.
        codes = self.codes[index].long() if self.codes.numel() else index
        return torch.where(block < count, codes, config.codebook_size)

    def coded_vectors(self, ids: Tensor) -> Tensor:
        """Look the entries up, and rotate them back."""
        flat = ids.reshape(-1)
        entries, widths = self.entries(), torch.tensor(self.config.block_widths, dtype=torch.int64, device=ids.device)
        block_of_axis = torch.repeat_interleave(widths, output_size=entries.shape[1])
        none = entries.new_zeros(1, entries.shape[1])
        points = torch.cat([entries, none]).gather(0, self.codes_of(flat)[:, block_of_axis])
        vectors = points @ self.axes() + self.means[self.places().tiers[flat]]
        return vectors.view(*ids.shape, self.embedding_dim)

    def coded_scores(self, hidden: Tensor) -> Tensor:
        """Score the entries of each block once, then look up and add, tier by tier, and the means once a tier."""
        hidden, config = hidden.float(), self.config
        turned = (hidden @ self.axes().float().T).split(config.block_widths, dim=1)
        blocks = self.entries().float().split(config.block_widths, dim=1)
        tables = torch.stack([part @ query.T for part, query in zip(blocks, turned, strict=True)]) if blocks else None
        offsets = hidden @ self.means.float().T
        scores = []
        for tier, (rows, count) in enumerate(zip(config.tier_rows, config.tier_blocks, strict=True)):
            offset = offsets[:, tier : tier + 1]
            if count and rows and tables is not None:
                scores.append(product_scores(tables[:count], self.tier_codes(tier), 8) + offset)
            else:
                scores.append(offset.expand(-1, rows))
        if len(scores) == 1:
            return scores[0]
        places = self.places()
        firsts = torch.tensor((0, *config.tier_rows[:-1]), device=hidden.device).cumsum(0)
        # Whole rows are moved faster than columns.
        stacked = torch.cat([part.T for part in scores])
        return stacked.index_select(0, firsts[places.tiers] + places.slots).T

    # Writing.

    @torch.no_grad()
    def set_entries(self, codebooks: Tensor) -> None:
        """Store the codebooks side by side (n, r): as they are, or in bytes after the gain of each axis."""
        if self.codebooks is not None:
            self.codebooks.copy_(codebooks)
        if self.entry_codes is not None and self.gains is not None:
            # Rounded as it will be stored, so that the bytes are right for it.
            self.gains.copy_(codebooks.abs().amax(0).to(STORAGE_DTYPES[self.config.storage_dtype]))
            steps = codebooks * (_LARGEST / self.gains.clamp(min=torch.finfo(torch.float32).tiny))
            self.entry_codes.copy_(steps.round().clamp(-_LARGEST, _LARGEST) + (_LARGEST + 1))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw everything at random."""
        super().reset_parameters()
        self.codes.random_(0, self.config.codebook_size)
        if self.entry_codes is not None and self.gains is not None:
            self.entry_codes.random_(1, 256)
            # Evenly drawn values spread by 1 / sqrt(3) of the largest.
            self.gains.fill_(3**0.5)
        if self.codebooks is not None:
            self.codebooks.normal_()

    def check_values(self) -> None:
        """Raise if a code is no entry of its codebook, or blocks do not add up."""
        super().check_values()
        config = self.config
        if sum(config.block_widths) != config.rank or max(config.tier_blocks, default=0) > len(config.block_widths):
            raise CheckpointError(
                f"`block_widths` {config.block_widths} and `tier_blocks` {config.tier_blocks} do not fit to the rank "
                f"{config.rank}."
            )
        if self.codes.numel() and int(self.codes.max()) >= config.codebook_size:
            raise CheckpointError(f"`codes` holds {int(self.codes.max())}, `codebook_size` is {config.codebook_size}.")

    def collisions(self) -> int:
        """Return how many rows have the codes of an earlier row of their tier."""
        collisions = 0
        for tier, (rows, count) in enumerate(zip(self.config.tier_rows, self.config.tier_blocks, strict=True)):
            different = len(torch.unique(self.tier_codes(tier), dim=0)) if rows and count else min(rows, 1)
            collisions += rows - different
        return collisions
