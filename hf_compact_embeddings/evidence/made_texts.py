"""Texts where none are given: what a model that generates says by itself, or words and tokens drawn by frequency."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..model_outputs import is_causal_lm
from .word_frequencies import Language, sentences_of

_TEXTS = 512
_TOKENS_OF_A_TEXT = 24
# A model's own texts are worth more, and take longer.
_OWN_TEXTS, _OWN_TOKENS = 64, 64


def made_texts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    counts: Tensor,
    languages: Mapping[str, Language] | None,
    seed: int,
) -> list[str]:
    """Return texts to read sensitivities and contextual states from.

    Args:
        model: the dense model; one that generates makes them itself.
        tokenizer: of the model.
        counts: how often tokens are expected (V,).
        languages: words to draw, if their frequencies are known; else tokens are drawn.
        seed: of the draws.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if is_causal_lm(model) and model.can_generate():
            return _said(model, tokenizer, counts)
        if languages:
            return sentences_of(languages, _TEXTS, seed)
        return tokenizer.batch_decode(_drawn(counts, tokenizer, _TEXTS, _TOKENS_OF_A_TEXT), skip_special_tokens=True)


@torch.no_grad()
def _said(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, counts: Tensor) -> list[str]:
    """Return what a causal model says when it begins with a token drawn by frequency."""
    start = _drawn(counts, tokenizer, _OWN_TEXTS, 1)
    if tokenizer.bos_token_id is not None:
        start = torch.cat([torch.full_like(start, tokenizer.bos_token_id), start], dim=1)
    training = model.training
    model.eval()
    try:
        ids = model.generate(
            start.to(model.device),
            attention_mask=torch.ones_like(start).to(model.device),
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            min_new_tokens=_OWN_TOKENS,
            max_new_tokens=_OWN_TOKENS,
            pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
        )
    finally:
        model.train(training)
    return tokenizer.batch_decode(ids, skip_special_tokens=True)


def _drawn(counts: Tensor, tokenizer: PreTrainedTokenizerBase, texts: int, length: int) -> Tensor:
    """Return tokens drawn one by one (texts, length); special ones, which no text is made of, are left out."""
    weights = counts.double().clone()
    weights[[token for token in tokenizer.all_special_ids if token < len(weights)]] = 0.0
    # Rows without a token have no text.
    weights[len(tokenizer) :] = 0.0
    # `torch.multinomial` takes no more than 2^24 kinds, and a table may have more.
    bounds = weights.cumsum(0)
    return torch.searchsorted(bounds, torch.rand(texts, length, dtype=torch.float64) * bounds[-1])
