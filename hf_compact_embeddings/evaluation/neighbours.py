"""Which tokens lie nearest to a token, in the dense table and in the compact one."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

_ROWS_PER_CHUNK = 8192
_NEAREST = 5
# Ranks by frequency from which on a word is looked for.
_RANKS = (200, 500, 1_000, 2_000, 5_000, 10_000, 20_000)
_SHORTEST_WORD = 4


@dataclasses.dataclass(frozen=True)
class Neighbours:
    """A token's nearest tokens by cosine, the nearest first.

    Attributes:
        token: the word.
        rank: of the word among all tokens by frequency, from 1.
        before: its nearest in the dense table.
        after: in the compact one.
    """

    token: str
    rank: int
    before: list[str]
    after: list[str]

    @property
    def kept(self) -> int:
        """How many of the nearest are the same."""
        return len(set(self.before) & set(self.after))


def words_to_show(counts: Tensor, tokenizer: PreTrainedTokenizerBase) -> dict[int, int]:
    """Return ids of whole words from frequent to rare, with their ranks, by how often tokens occur (V,)."""
    order = counts.argsort(descending=True, stable=True).tolist()
    chosen: dict[int, int] = {}
    for first in _RANKS:
        for rank, token in enumerate(order[first - 1 : 2 * first], first):
            if token not in chosen and _is_word(token, tokenizer):
                chosen[token] = rank
                break
    return chosen


def _is_word(token: int, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Tell whether a token is a word of its own: read alone, it comes out as itself."""
    word = _shown(token, tokenizer)
    if len(word) < _SHORTEST_WORD or not word.isalpha():
        return False
    return any(tokenizer.encode(text, add_special_tokens=False) == [token] for text in (word, f" {word}"))


def _shown(token: int, tokenizer: PreTrainedTokenizerBase) -> str:
    return str(tokenizer.decode([token])).strip() or str(tokenizer.convert_ids_to_tokens(token))


class Nearest:
    """Finds the nearest rows of some, while rows go by."""

    def __init__(self, ids: Sequence[int], centres: Tensor) -> None:
        """Keep whose neighbours are sought, and where they are (n, D) in the table that goes by."""
        self.ids = torch.tensor(list(ids), dtype=torch.long)
        self._centres = torch.nn.functional.normalize(centres.float().cpu(), dim=-1)
        self._cosines = torch.empty(len(self.ids), 0)
        self._found = torch.empty(len(self.ids), 0, dtype=torch.long)

    def take(self, rows: slice, decoded: Tensor) -> None:
        """See some rows (n, D)."""
        cosines = self._centres @ torch.nn.functional.normalize(decoded.float(), dim=-1).T
        here = torch.arange(rows.start, rows.start + len(decoded))
        cosines[self.ids[:, None] == here[None]] = -torch.inf
        every = torch.cat([self._cosines, cosines], dim=1)
        ids = torch.cat([self._found, here.expand(len(self.ids), -1)], dim=1)
        best = every.topk(min(_NEAREST, every.shape[1]), dim=1)
        self._cosines, self._found = best.values, ids.gather(1, best.indices)

    def tokens(self, tokenizer: PreTrainedTokenizerBase) -> list[list[str]]:
        """Return the nearest tokens of each."""
        return [[_shown(token, tokenizer) for token in row] for row in self._found.tolist()]


def nearest_in(table: Tensor, ids: Sequence[int]) -> Nearest:
    """Return the nearest rows of some rows of a dense table (V, D)."""
    found = Nearest(ids, table[list(ids)])
    for start in range(0, len(table), _ROWS_PER_CHUNK):
        chunk = table[start : start + _ROWS_PER_CHUNK].cpu()
        found.take(slice(start, start + len(chunk)), chunk)
    return found
