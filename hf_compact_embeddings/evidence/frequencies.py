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
# As if a text of this length had been counted.
_EXPECTED_TOKENS = 1e6
# The law of Zipf and Mandelbrot: shares fall with (rank + offset)^-exponent. Single characters, whose place in a
# vocabulary tells nothing, count on average like the token of this rank. `benchmarks/frontier/ranks.py` fits all three.
ZIPF_EXPONENT, ZIPF_OFFSET, RANK_OF_CHARACTERS = 1.0, 10.0, 500.0


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
    so a rank gives a count by the law of Zipf and Mandelbrot. Special tokens, which stand in every text, count as the
    most frequent. None for a tokenizer in Python alone, which tells nothing.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    model = json.loads(backend.to_str())["model"]
    counts = torch.zeros(rows, dtype=torch.float64)
    if model["type"] == "Unigram":
        scores = torch.tensor([score for _, score in model["vocab"]], dtype=torch.float64)[:rows]
        # Special tokens have a score of 0, which is no probability.
        counts[: len(scores)] = torch.where(scores < 0, scores.exp(), 0.0)
    else:
        for token, rank in ranks_of_tokens(model).items():
            if model["vocab"][token] < rows:
                counts[model["vocab"][token]] = (rank + ZIPF_OFFSET) ** -ZIPF_EXPONENT
    counts *= _EXPECTED_TOKENS / counts.sum().clamp(min=1e-30)
    special = [token for token in tokenizer.all_special_ids if token < rows]
    counts[special] = counts.max()
    return counts


def ranks_of_tokens(model: dict[str, Any]) -> dict[str, float]:
    """Return the ranks by frequency of the tokens that a text can give, in a tokenizer's own order of them.

    Args:
        model: of a fast tokenizer, as JSON: BPE, or one whose vocabulary is in order.
    """
    if model["type"] == "BPE":
        merged = [merge if isinstance(merge, str) else "".join(merge) for merge in model["merges"]]
        by_merge = {token.replace(" ", ""): float(rank) for rank, token in enumerate(merged)}
        return {token: by_merge.get(token, RANK_OF_CHARACTERS) for token in model["vocab"]}
    inside = model.get("continuing_subword_prefix") or ""
    ordered = sorted(model["vocab"], key=model["vocab"].__getitem__)
    characters = [token for token in ordered if len(token.removeprefix(inside)) == 1]
    # Texts are cut at brackets: what stands in them, as "[unused7]", is no part of any.
    bracketed = {token for token in ordered if token.startswith("[") and token.endswith("]")}
    others = [token for token in ordered if token not in bracketed.union(characters)]
    return dict.fromkeys(characters, RANK_OF_CHARACTERS) | {token: float(rank) for rank, token in enumerate(others)}
