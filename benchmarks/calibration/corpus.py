"""What an experiment learns from: sentences, or texts as they are, without any sentence of the benchmark."""

from __future__ import annotations

import random
import re
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..common.library import count_tokens
from ..common.record import read_rows
from ..common.texts import texts_of
from .experiment import Experiment

_ENDS = re.compile(r"(?<=[.!?])\s+")
_WORD = re.compile(r"\w+")


def texts_to_learn(experiment: Experiment, data: Path, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Return different sentences of the files, or all of their texts, in random order."""
    if experiment.words is None:
        found = [text for path in experiment.texts for text in texts_of(data / path, tokenizer)]
    else:
        found = sentences(experiment, data)
    random.Random(experiment.seed).shuffle(found)
    return found


def sentences(experiment: Experiment, data: Path) -> list[str]:
    """Return different sentences of so many words, of each file so many at most."""
    assert experiment.words is not None
    least, most = experiment.words
    without = benchmark_sentences(experiment, data)
    found: dict[str, None] = {}
    for path in experiment.texts:
        whole = (part for text in texts_of(data / path) for part in _ENDS.split(text.strip()))
        fitting = {text: None for text in whole if least <= len(text.split()) <= most and plain(text) not in without}
        chosen = list(fitting)
        random.Random(experiment.seed).shuffle(chosen)
        found.update(dict.fromkeys(chosen[: experiment.most]))
    return list(found)


def pairs_to_learn(experiment: Experiment, data: Path) -> list[tuple[str, str]]:
    """Return the pairs of texts of the files that hold no sentence of the benchmark, in random order."""
    without = benchmark_sentences(experiment, data)
    rows = (row for path in experiment.pairs for row in read_rows(data / path))
    texts = ([value for value in row.values() if isinstance(value, str)] for row in rows)
    found = {(one, other): None for one, other, *_ in texts if not {plain(one), plain(other)} & without}
    result = list(found)
    random.Random(experiment.seed).shuffle(result)
    return result


def plain(sentence: str) -> str:
    """Return the words of a sentence without case and punctuation."""
    return " ".join(_WORD.findall(sentence.lower()))


def benchmark_sentences(experiment: Experiment, data: Path) -> set[str]:
    """Return every sentence of all parts of the STS benchmark, plain."""
    if experiment.measure != "sts":
        return set()
    rows = (row for path in sorted((data / experiment.measured_on).glob("*.jsonl")) for row in read_rows(path))
    return {plain(row[column]) for row in rows for column in ("sentence1", "sentence2")}


def token_counts(
    experiment: Experiment, data: Path, texts: list[str], tokenizer: PreTrainedTokenizerBase, rows: int
) -> Tensor:
    """Return how often each token occurs in all files together, or if there were as much of each."""
    counted = [texts_of(data / path) for path in experiment.count] or [iter(texts)]
    return summed([count_tokens(kind, tokenizer, rows) for kind in counted], experiment.balance)


def summed(kinds: list[Tensor], balance: bool) -> Tensor:
    """Return the sum of counts (V,), or if balanced as though there were as many tokens of each kind."""
    if balance:
        most = max(float(counts.sum()) for counts in kinds)
        kinds = [counts * most / counts.sum() for counts in kinds]
    return torch.stack(kinds).sum(0)
