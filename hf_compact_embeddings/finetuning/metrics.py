"""Metrics under the keys that the Hub's `evaluate` gives them, computed by scikit-learn and SciPy.

Accuracy, F1 and the correlations are as those libraries give them: shares from 0 to 1, correlations from -1 to 1. Only
SQuAD's two are in per cent, as its own rules have them.
"""

from __future__ import annotations

import collections
import importlib
import re
import string
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..modeling.errors import CompactConfigError, CompactEmbeddingsError


def compute(names: Sequence[str], predictions: Sequence[Any], references: Sequence[Any]) -> dict[str, float]:
    """Return metrics of predicted and true values.

    Args:
        names: out of accuracy, f1, matthews_correlation, pearson and spearmanr.
        predictions: predicted values.
        references: true values.
    """
    return {name: float(_METRICS[name](np.asarray(predictions), np.asarray(references))) for name in names}


def compute_on_hub(script: Sequence[str], predictions: Sequence[Any], references: Sequence[Any]) -> dict[str, float]:
    """Return metrics as a script of the Hub computes them, which `evaluate` downloads and runs.

    Args:
        script: what `evaluate.load` is asked for, as ("glue", "mrpc"); empty where the Hub has none for the task.
        predictions: predicted values.
        references: true values.
    """
    if not script:
        raise CompactConfigError("`hub_metric`: the Hub has no metric for texts of your own.")
    try:
        import evaluate
    except ImportError as error:
        raise CompactEmbeddingsError(
            "`hub_metric` needs evaluate: run `pip install 'hf_compact_embeddings[hub-metric]'`."
        ) from error
    try:
        metric = evaluate.load(*script)
    except (OSError, RuntimeError, ValueError) as error:
        raise CompactEmbeddingsError(
            f"`hub_metric`: evaluate cannot load {'/'.join(script)} ({error}). Without it the metrics are the same, "
            "computed by scikit-learn and SciPy."
        ) from error
    found = metric.compute(predictions=predictions, references=references)
    return {name: float(value) for name, value in found.items()}


def spearman(left: Any, right: Any) -> float:
    """Return the rank correlation, from -1 to 1, of two lists of values (N,); ties share their mean rank."""
    return float(_from_library("scipy.stats", "spearmanr")(np.asarray(left), np.asarray(right)).statistic)


def _from_library(module: str, name: str) -> Any:
    """Return a function of scikit-learn or SciPy."""
    try:
        return getattr(importlib.import_module(module), name)
    except ImportError as error:
        library = {"sklearn": "scikit-learn", "scipy": "SciPy"}[module.partition(".")[0]]
        raise CompactEmbeddingsError(
            f"Metrics need {library}: run `pip install 'hf_compact_embeddings[train]'`."
        ) from error


def _accuracy(predictions: np.ndarray, references: np.ndarray) -> float:
    return float((predictions == references).mean())


def _f1(predictions: np.ndarray, references: np.ndarray) -> float:
    return _from_library("sklearn.metrics", "f1_score")(references, predictions)


def _matthews(predictions: np.ndarray, references: np.ndarray) -> float:
    return _from_library("sklearn.metrics", "matthews_corrcoef")(references, predictions)


def _pearson(predictions: np.ndarray, references: np.ndarray) -> float:
    return _from_library("scipy.stats", "pearsonr")(predictions, references).statistic


_METRICS = {
    "accuracy": _accuracy,
    "f1": _f1,
    "matthews_correlation": _matthews,
    "pearson": _pearson,
    "spearmanr": spearman,
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
