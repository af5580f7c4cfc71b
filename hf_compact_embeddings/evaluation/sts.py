"""Semantic textual similarity: how well the cosine of sentence vectors ranks pairs as people do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .data import number_in, require_columns
from .sentences import sentence_vectors, spearman

_COLUMNS = ("sentence1", "sentence2", "score")


def sts_spearman(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Iterable[Mapping[str, Any]],
    max_length: int | None = None,
) -> float:
    """Return 100 times the rank correlation of cosines and scores.

    Args:
        model: an encoder; its mean last hidden states are the sentence vectors.
        tokenizer: the model's tokenizer.
        pairs: rows with the columns of the STS benchmark: sentence1, sentence2, score.
        max_length: of a sentence in tokens.
    """
    rows = list(pairs)
    require_columns(rows, _COLUMNS)
    scores = [number_in(row["score"], place, "score") for place, row in enumerate(rows)]
    # Both sides in one go: sentences of a length share a batch, and repeated ones are read once.
    sentences = sorted({row[column] for row in rows for column in _COLUMNS[:2]})
    index = {sentence: position for position, sentence in enumerate(sentences)}
    vectors = sentence_vectors(model, tokenizer, sentences, max_length)
    first, second = (vectors[[index[row[column]] for row in rows]] for column in _COLUMNS[:2])
    cosines = torch.cosine_similarity(first, second, dim=-1)
    return 100 * spearman(cosines, torch.tensor(scores))
