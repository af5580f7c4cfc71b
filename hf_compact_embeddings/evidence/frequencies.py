"""How often tokens occur: as counted in texts, or as far as the tokenizer itself tells."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..modeling.errors import CompactConfigError
from .texts import Text, no_tokens, text_batches

_TEXTS_PER_BATCH = 64
# As if a text of this length had been counted; Zipf's law, flattened for the first ranks (Mandelbrot).
_EXPECTED_TOKENS = 1e6
_ZIPF_OFFSET = 100.0


def given_counts(given: Any, rows: int) -> Tensor:
    """Return counts (V,) that a user gave."""
    try:
        counts = torch.as_tensor(given).cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise CompactConfigError(f"`token_counts` cannot be read as numbers: {error}") from error
    if counts.shape != (rows,):
        raise CompactConfigError(f"`token_counts` has shape {tuple(counts.shape)}, but the table has {rows:,} rows.")
    return counts


def count_tokens(texts: Iterable[Text], tokenizer: PreTrainedTokenizerBase, rows: int) -> Tensor:
    """Count how often each of `rows` token ids occurs in texts, special tokens included, as float64 (V,)."""
    counts = torch.zeros(rows, dtype=torch.float64)
    for batch in text_batches(texts, "Counting tokens", _TEXTS_PER_BATCH):
        encoded = tokenizer(batch, truncation=False, verbose=False)["input_ids"]
        ids = torch.tensor([token for sequence in encoded for token in sequence], dtype=torch.int64)
        counts += torch.bincount(ids[ids < rows], minlength=rows)
    if not counts.any():
        raise no_tokens()
    return counts


def counts_from_tokenizer(tokenizer: PreTrainedTokenizerBase, rows: int) -> Tensor | None:
    """Return how often tokens may be expected to occur (V,), as far as the tokenizer itself tells, float64.

    A unigram model holds probabilities. Merges (BPE) and vocabularies (WordPiece) are listed the most frequent first,
    so a rank gives a count by Zipf's law. Special tokens, which stand in every text, count as the most frequent. None
    for a tokenizer in Python alone, which tells nothing.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    model = json.loads(backend.to_str())["model"]
    counts = torch.zeros(rows, dtype=torch.float64)
    if model["type"] == "Unigram":
        scores = torch.tensor([score for _, score in model["vocab"]], dtype=torch.float64)[:rows]
        # Special tokens have a score of 0, which is no probability.
        counts[: len(scores)] = torch.where(scores < 0, scores.exp(), 0.0) * _EXPECTED_TOKENS
    else:
        ranks = dict(model["vocab"])
        if model["type"] == "BPE":
            merged = [merge if isinstance(merge, str) else "".join(merge) for merge in model["merges"]]
            by_merge = {token.replace(" ", ""): rank for rank, token in enumerate(merged)}
            ranks = {token: by_merge.get(token, 0) for token in ranks}
        for token, rank in ranks.items():
            if model["vocab"][token] < rows:
                counts[model["vocab"][token]] = _EXPECTED_TOKENS / (rank + _ZIPF_OFFSET)
    special = [token for token in tokenizer.all_special_ids if token < rows]
    counts[special] = counts.max()
    return counts
