"""Sentence vectors, and how well two models agree on which sentences are alike."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..evidence.states import base_encoder
from ..modeling.errors import CompactConfigError

_SENTENCES_PER_BATCH = 64
_MAX_LENGTH = 256


@torch.no_grad()
def sentence_vectors(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sentences: Sequence[str],
    max_length: int | None = None,
) -> Tensor:
    """Return the mean of the encoder's last hidden states of each sentence (N, H), float32."""
    require_padding(tokenizer)
    encoder = base_encoder(model)
    longest = min(max_length or _MAX_LENGTH, tokenizer.model_max_length)
    training = model.training
    model.eval()
    # Sentences of a length go together, so that little is padded.
    order = sorted(range(len(sentences)), key=lambda index: len(sentences[index]))
    vectors: dict[int, Tensor] = {}
    for start in range(0, len(order), _SENTENCES_PER_BATCH):
        chosen = order[start : start + _SENTENCES_PER_BATCH]
        inputs = tokenizer(
            [sentences[index] for index in chosen],
            padding=True,
            truncation=True,
            max_length=longest,
            return_tensors="pt",
        ).to(model.device)
        states = encoder(**inputs).last_hidden_state.float()
        mask = inputs["attention_mask"].unsqueeze(-1).float()
        means = (states * mask).sum(1) / mask.sum(1).clamp(min=1.0)
        vectors.update(zip(chosen, means.cpu(), strict=True))
    model.train(training)
    return torch.stack([vectors[index] for index in range(len(sentences))])


def require_padding(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise if texts cannot be put into a batch."""
    if tokenizer.pad_token_id is None:
        raise CompactConfigError("`tokenizer` has no padding token: set `tokenizer.pad_token`, say to its `eos_token`.")


def agreement(original: Tensor, compact: Tensor) -> float:
    """Return the Spearman correlation of all pairwise cosines of two sets of vectors (N, H)."""
    first, second = torch.triu_indices(len(original), len(original), offset=1)
    cosines = [torch.cosine_similarity(vectors[first], vectors[second], dim=-1) for vectors in (original, compact)]
    return spearman(cosines[0], cosines[1])


def spearman(left: Tensor, right: Tensor) -> float:
    """Return the rank correlation of two lists of values (N,); ties share their mean rank."""
    ranks = torch.stack([_ranks(left), _ranks(right)])
    return float(torch.corrcoef(ranks)[0, 1])


def _ranks(values: Tensor) -> Tensor:
    _, group, counts = torch.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    return (last - (counts - 1) / 2)[group]
