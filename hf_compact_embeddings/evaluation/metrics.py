"""Metrics under the keys that `evaluate` gives them; from its scripts where asked for and in reach, else from here."""

from __future__ import annotations

import collections
import functools
import re
import string
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from huggingface_hub import constants
from transformers.utils import logging

from ..modeling.errors import CompactEmbeddingsError

logger = logging.get_logger(__name__)


def compute(
    names: Sequence[str], predictions: Sequence[Any], references: Sequence[Any], script: tuple[str, ...] | None = None
) -> dict[str, float]:
    """Return metrics of predicted and true values.

    Args:
        names: out of accuracy, f1, matthews_correlation, pearson and spearmanr.
        predictions: predicted values.
        references: true values.
        script: what to ask `evaluate.load` for first, as ("glue", "mrpc"); it runs code that it fetches from the Hub.
    """
    if script and (metric := _script(*script)) is not None:
        return {name: float(value) for name, value in metric.compute(predictions, references).items()}
    return {name: float(_METRICS[name](np.asarray(predictions), np.asarray(references))) for name in names}


@functools.cache
def _script(*words: str) -> Any:
    """Return a metric of `evaluate`, or None where its script is out of reach."""
    if constants.HF_HUB_OFFLINE:
        return None
    try:
        import evaluate

        return evaluate.load(*words)
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        logger.info(f"`evaluate` cannot load {'/'.join(words)} ({error}): scikit-learn and SciPy compute the same.")
        return None


def _from_library(module: str, name: str) -> Any:
    """Return a function of scikit-learn or SciPy."""
    try:
        library = __import__(module, fromlist=[name])
    except ImportError as error:
        raise CompactEmbeddingsError(
            f"Metrics need {module.partition('.')[0]}: run `pip install 'hf_compact_embeddings[train]'`."
        ) from error
    return getattr(library, name)


def _accuracy(predictions: np.ndarray, references: np.ndarray) -> float:
    return float((predictions == references).mean())


def _f1(predictions: np.ndarray, references: np.ndarray) -> float:
    return _from_library("sklearn.metrics", "f1_score")(references, predictions)


def _matthews(predictions: np.ndarray, references: np.ndarray) -> float:
    return _from_library("sklearn.metrics", "matthews_corrcoef")(references, predictions)


def _pearson(predictions: np.ndarray, references: np.ndarray) -> float:
    return _from_library("scipy.stats", "pearsonr")(predictions, references).statistic


def _spearman(predictions: np.ndarray, references: np.ndarray) -> float:
    return _from_library("scipy.stats", "spearmanr")(predictions, references).statistic


_METRICS = {
    "accuracy": _accuracy,
    "f1": _f1,
    "matthews_correlation": _matthews,
    "pearson": _pearson,
    "spearmanr": _spearman,
}


def interval_95(values: Sequence[float]) -> tuple[float, float] | None:
    """Return the 95 % confidence interval of the mean of values, by Student's t; None for fewer than two."""
    if len(values) < 2:
        return None
    reach = _from_library("scipy.stats", "t").ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5
    return float(np.mean(values) - reach), float(np.mean(values) + reach)


def squad_metrics(answers: Mapping[str, str], references: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """Return SQuAD's exact_match and f1, in per cent.

    Args:
        answers: the predicted text for each question's id.
        references: the true texts for each question's id.
    """
    exact = overlap = 0.0
    for key, truths in references.items():
        exact += max(float(_normal(answers[key]) == _normal(truth)) for truth in truths)
        overlap += max(_token_f1(answers[key], truth) for truth in truths)
    return {"exact_match": 100 * exact / len(references), "f1": 100 * overlap / len(references)}


def _normal(text: str) -> str:
    text = "".join(character for character in text.lower() if character not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def _token_f1(answer: str, truth: str) -> float:
    found, wanted = _normal(answer).split(), _normal(truth).split()
    if not found or not wanted:
        return float(found == wanted)
    common = sum((collections.Counter(found) & collections.Counter(wanted)).values())
    return 2 * common / (len(found) + len(wanted))
