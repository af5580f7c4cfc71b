"""What a report tells of a table where its tokens are known: errors by frequency, and some words' neighbours."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..modeling.structure import CompactEmbedding
from .bands import BandErrors
from .neighbours import Nearest, Neighbours, nearest_in, words_to_show
from .reading import RowReader


class Words:
    """What is seen of the input table where tokens are known: errors by frequency, and some words' neighbours."""

    def __init__(
        self, structure: CompactEmbedding, table: Tensor, counts: Tensor, tokenizer: PreTrainedTokenizerBase
    ) -> None:
        """Choose words, and look for their neighbours in the dense table."""
        self.tokenizer, self.ranks = tokenizer, words_to_show(counts, tokenizer)
        self.errors, ids = BandErrors(table, counts), list(self.ranks)
        self.before = nearest_in(table, ids)
        self.after = Nearest(
            ids, structure.embed(torch.tensor(ids, dtype=torch.long, device=structure.device), plain=True).detach()
        )

    @property
    def readers(self) -> tuple[RowReader, ...]:
        """What has to see all rows."""
        return (self.errors, self.after) if self.ranks else (self.errors,)

    def neighbours(self) -> list[Neighbours]:
        """Return each word with its neighbours."""
        words = [str(self.tokenizer.decode([token])).strip() for token in self.ranks]
        both = (found.tokens(self.tokenizer) for found in (self.before, self.after))
        return [Neighbours(*one) for one in zip(words, self.ranks.values(), *both, strict=True)]
