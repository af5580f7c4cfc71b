"""Sentence vectors: how well they rank pairs as people do (STS), and how well two models agree on what is alike."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..evidence.states import base_encoder
from ..finetuning.data import number_in, require_columns, require_padding
from ..finetuning.metrics import spearman
from ..model_outputs import mean_pooled

_SENTENCES_PER_BATCH = 64
_MAX_LENGTH = 256
_STS_COLUMNS = ("sentence1", "sentence2", "score")


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
        states = encoder(**inputs).last_hidden_state
        vectors.update(zip(chosen, mean_pooled(states, inputs["attention_mask"]).cpu(), strict=True))
    model.train(training)
    return torch.stack([vectors[index] for index in range(len(sentences))])


def agreement(original: Tensor, compact: Tensor) -> float:
    """Return the Spearman correlation of all pairwise cosines of two sets of vectors (N, H)."""
    first, second = torch.triu_indices(len(original), len(original), offset=1)
    cosines = [torch.cosine_similarity(vectors[first], vectors[second], dim=-1) for vectors in (original, compact)]
    return spearman(cosines[0], cosines[1])


def sts_correlation(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Iterable[Mapping[str, Any]],
    max_length: int | None = None,
) -> float:
    """Return the Spearman correlation, from -1 to 1, of the cosines of sentence pairs and the scores people gave them.

    Args:
        model: an encoder; its mean last hidden states are the sentence vectors.
        tokenizer: the model's tokenizer.
        pairs: rows with the columns of the STS benchmark: sentence1, sentence2, score.
        max_length: of a sentence in tokens.
    """
    rows = list(pairs)
    require_columns(rows, _STS_COLUMNS)
    scores = [number_in(row["score"], index, "score") for index, row in enumerate(rows)]
    # Both sides in one go: sentences of a length share a batch, and repeated ones are read once.
    sentences = sorted({row[column] for row in rows for column in _STS_COLUMNS[:2]})
    index_of = {sentence: index for index, sentence in enumerate(sentences)}
    vectors = sentence_vectors(model, tokenizer, sentences, max_length)
    first, second = (vectors[[index_of[row[column]] for row in rows]] for column in _STS_COLUMNS[:2])
    return spearman(torch.cosine_similarity(first, second, dim=-1), scores)
