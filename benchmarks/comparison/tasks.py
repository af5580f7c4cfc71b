"""Tasks: what a model's vectors say of each item, and what all items together say of the model.

A task gives a value, or a few, for each item of each language, so that two models can be compared item by item.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..common.library import sentence_vectors
from ..common.record import read_rows
from .experiment import Subject

Values = NDArray[np.float64]
# Of items (N, columns) of one language.
Items = dict[str, Values]
_RANKS_COUNTED = 10
_PASSAGE_TOKENS = 192


def similarity(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, subject: Subject, data: Path, options: Mapping[str, Any]
) -> Items:
    """Return the cosine and the score that people gave, of each pair of sentences (N, 2)."""
    prefix = subject.prefixes.get("query", "")
    found = {}
    for language, rows in _rows(data, options):
        sides = [[prefix + row[column] for row in rows] for column in ("sentence1", "sentence2")]
        first, second = (sentence_vectors(model, tokenizer, side) for side in sides)
        cosines = torch.cosine_similarity(first, second, dim=-1).double().numpy()
        found[language] = np.stack([cosines, np.array([float(row["score"]) for row in rows])], axis=1)
    return found


def retrieval(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, subject: Subject, data: Path, options: Mapping[str, Any]
) -> Items:
    """Return the rank of the right paragraph for each question (N, 1), in its language and across to the first one.

    A language alone stands for questions and paragraphs in it; `de-en` for questions in the one, paragraphs in the
    other: of the same question, since all languages hold the same ones.
    """
    query, passage = (subject.prefixes.get(role, "") for role in ("query", "passage"))
    questions: dict[str, torch.Tensor] = {}
    paragraphs: dict[str, torch.Tensor] = {}
    answers = np.zeros(0, dtype=np.int64)
    every = options.get("every", 1)
    for language, rows in _rows(data, {**options, "every": 1}):
        contexts = list(dict.fromkeys(row["context"] for row in rows))
        places = {context: place for place, context in enumerate(contexts)}
        texts = [passage + context for context in contexts]
        paragraphs[language] = _unit(sentence_vectors(model, tokenizer, texts, _PASSAGE_TOKENS))
        asked = rows[::every]
        questions[language] = _unit(sentence_vectors(model, tokenizer, [query + row["question"] for row in asked]))
        answers = np.array([places[row["context"]] for row in asked])
    pivot = next(iter(paragraphs))
    pairs = [(one, one) for one in questions] + [(one, pivot) for one in questions if one != pivot]
    return {
        asked if asked == read else f"{asked}-{read}": _ranks(questions[asked], paragraphs[read], answers)
        for asked, read in pairs
    }


def _rows(data: Path, options: Mapping[str, Any]) -> list[tuple[str, list[dict[str, Any]]]]:
    files = {language: data / options["files"].format(language=language) for language in options["languages"]}
    return [(language, read_rows(path)[:: options.get("every", 1)]) for language, path in files.items()]


def _unit(vectors: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(vectors, dim=-1)


def _ranks(questions: torch.Tensor, paragraphs: torch.Tensor, answers: NDArray[np.int64]) -> Values:
    scores = (questions @ paragraphs.T).numpy()
    right = scores[np.arange(len(answers)), answers]
    return (1.0 + (scores > right[:, None]).sum(1)).astype(np.float64)[:, None]


# What all items say together, in points of 100.


def spearman(items: Values) -> float:
    """Return the rank correlation of two columns."""
    from scipy.stats import rankdata

    first, second = (rankdata(column) for column in items.T)
    return 100 * float(np.corrcoef(first, second)[0, 1])


def reciprocal_rank(items: Values) -> float:
    """Return the mean of one over the rank, of the first ten."""
    ranks = items[:, 0]
    return 100 * float(np.where(ranks <= _RANKS_COUNTED, 1 / ranks, 0.0).mean())


def first_recall(items: Values) -> float:
    """Return how many of the first ranks are right."""
    return 100 * float((items[:, 0] == 1).mean())


ReadItems = Callable[[PreTrainedModel, PreTrainedTokenizerBase, Subject, Path, Mapping[str, Any]], Items]
TASKS: dict[str, ReadItems] = {"similarity": similarity, "retrieval": retrieval}
# The first measure of a task is the one that plots show.
MEASURES: dict[str, dict[str, Callable[[Values], float]]] = {
    "similarity": {"Spearman": spearman},
    "retrieval": {"MRR@10": reciprocal_rank, "recall@1": first_recall},
}


def within(task: str, names: Sequence[str]) -> dict[str, list[str]]:
    """Return which names of items go into which mean: one language, and from one into another."""
    groups = {"": [name for name in names if "-" not in name], "across": [name for name in names if "-" in name]}
    return {f"{task} {group}".strip(): members for group, members in groups.items() if members}
