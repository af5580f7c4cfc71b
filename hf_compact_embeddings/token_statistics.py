"""What texts say about tokens: how often each occurs, and its mean contextual state."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import torch
from huggingface_hub.utils import tqdm
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .modeling.errors import CompactConfigError, config_error

_TEXTS_PER_BATCH = 64
_MAX_LENGTH = 256
# As if a text of this length had been counted; Zipf's law, flattened for the first ranks (Mandelbrot).
_EXPECTED_TOKENS = 1e6
_ZIPF_OFFSET = 100.0


def token_weights(
    given: Tensor | str | None, texts: Iterable[str] | None, tokenizer: PreTrainedTokenizerBase | None, rows: int
) -> Tensor | None:
    """Return how often each token occurs (V,), from what there is: counts, the word "tokenizer", or texts."""
    if isinstance(given, str):
        if given != "tokenizer" or tokenizer is None:
            raise config_error("token_counts", given, 'it must be counts, or "tokenizer" with a `tokenizer`')
        return counts_from_tokenizer(tokenizer, rows)
    if given is not None:
        return torch.as_tensor(given).cpu()
    if texts is None or tokenizer is None:
        return None
    return count_tokens(texts, tokenizer, rows)


def count_tokens(texts: Iterable[str], tokenizer: PreTrainedTokenizerBase, rows: int) -> Tensor:
    """Count how often each of `rows` token ids occurs in texts, special tokens included, as float64 (V,)."""
    counts = torch.zeros(rows, dtype=torch.float64)
    for batch in text_batches(texts, "Counting tokens"):
        encoded = tokenizer(batch, truncation=False, verbose=False)["input_ids"]
        ids = torch.tensor([token for sequence in encoded for token in sequence], dtype=torch.int64)
        counts += torch.bincount(ids[ids < rows], minlength=rows)
    if not counts.any():
        raise CompactConfigError("`texts` gave no tokens: it is empty, or holds empty strings only.")
    return counts


def counts_from_tokenizer(tokenizer: PreTrainedTokenizerBase, rows: int) -> Tensor:
    """Return how often tokens may be expected to occur (V,), as far as the tokenizer itself tells, float64.

    A unigram model holds probabilities. Merges (BPE) and vocabularies (WordPiece) are listed the most frequent first,
    so a rank gives a count by Zipf's law. Special tokens, which stand in every text, count as the most frequent.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise CompactConfigError(f"`tokenizer` is a {type(tokenizer).__name__}, which tells nothing of its tokens.")
    model = json.loads(backend.to_str())["model"]
    counts = torch.zeros(rows, dtype=torch.float64)
    if model["type"] == "Unigram":
        scores = torch.tensor([score for _, score in model["vocab"]], dtype=torch.float64)[:rows]
        # Special tokens have a score of 0, which is no probability.
        counts[: len(scores)] = torch.where(scores < 0, scores.exp(), 0.0) * _EXPECTED_TOKENS
    else:
        places = dict(model["vocab"])
        if model["type"] == "BPE":
            merged = [merge if isinstance(merge, str) else "".join(merge) for merge in model["merges"]]
            ranks = {token.replace(" ", ""): rank for rank, token in enumerate(merged)}
            places = {token: ranks.get(token, 0) for token in places}
        for token, rank in places.items():
            if model["vocab"][token] < rows:
                counts[model["vocab"][token]] = _EXPECTED_TOKENS / (rank + _ZIPF_OFFSET)
    special = [token for token in tokenizer.all_special_ids if token < rows]
    counts[special] = counts.max()
    return counts


@torch.no_grad()
def contextual_states(texts: Iterable[str], tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> Tensor:
    """Return each token's mean last hidden state over texts (V, H), float32.

    Tokens that do not occur get the state that a linear map from their table row predicts, so that all
    rows can be compared with each other.
    """
    table = model.get_input_embeddings().weight.float()
    training = model.training
    model.eval()
    try:
        sums, counts = _summed_states(texts, tokenizer, model, len(table))
    finally:
        model.train(training)
    seen = counts > 0
    means = sums / counts.clamp(min=1).unsqueeze(-1)
    rows = torch.cat([table.cpu(), torch.ones(len(table), 1)], dim=1)
    # A ridge keeps the map defined where fewer tokens were seen than the table is wide.
    gram = rows[seen].T @ rows[seen]
    ridge = 1e-3 * gram.diagonal().mean() * torch.eye(len(gram))
    predicted = rows @ torch.linalg.solve(gram + ridge, rows[seen].T @ means[seen])
    return torch.where(seen.unsqueeze(-1), means, predicted)


def _summed_states(
    texts: Iterable[str], tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, rows: int
) -> tuple[Tensor, Tensor]:
    """Return the sum of each token's last hidden states (V, H), and how many there were (V,)."""
    encoder = base_encoder(model)
    sums, counts = None, torch.zeros(rows)
    for batch in text_batches(texts, "Reading contexts"):
        encoded = tokenizer(batch, truncation=True, max_length=_MAX_LENGTH, padding=True, return_tensors="pt")
        states = encoder(
            input_ids=encoded["input_ids"].to(model.device),
            attention_mask=encoded["attention_mask"].to(model.device),
        ).last_hidden_state
        kept = encoded["attention_mask"].bool()
        ids, states = encoded["input_ids"][kept], states.cpu().float()[kept]
        sums = torch.zeros(rows, states.shape[-1]) if sums is None else sums
        sums.index_add_(0, ids, states)
        counts.index_add_(0, ids, torch.ones(len(ids)))
    if sums is None:
        raise CompactConfigError("`texts` gave no tokens: it is empty, or holds empty strings only.")
    return sums, counts


def base_encoder(model: PreTrainedModel) -> PreTrainedModel:
    """Return the part of a model that turns embedded tokens into hidden states."""
    base = getattr(model, model.base_model_prefix, model)
    return base.get_encoder() if model.config.is_encoder_decoder else base


def text_batches(texts: Iterable[str], description: str, size: int = _TEXTS_PER_BATCH) -> Iterator[list[str]]:
    """Yield texts that are not empty, some at a time."""
    if isinstance(texts, str):
        raise CompactConfigError("`texts` is one string, but it must be an iterable of strings.")
    iterator: Iterator[Any] = iter(texts)
    with tqdm(desc=description, unit="text", leave=False, delay=1.0) as progress:
        while batch := list(islice(iterator, size)):
            if kept := [text for text in batch if text]:
                yield kept
            progress.update(len(batch))
