"""Tasks that classify or score texts: those of GLUE, and XNLI."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from transformers import PreTrainedConfig, PreTrainedTokenizerBase
from transformers.utils import logging

from ..modeling.errors import CompactConfigError
from .data import number_in, require_columns
from .metrics import compute

logger = logging.get_logger(__name__)


@dataclasses.dataclass(frozen=True)
class ClassificationTask:
    """A task.

    Attributes:
        name: after which its data set's configuration on the Hub is named.
        columns: of the text, or of both texts.
        labels: how many there are; 1 for a score.
        metrics: their keys, the one that is reported first in front.
        dataset: its data set's Hub id.
        label_column: where the label is, with other names that it goes by.
        validation: the name of the split to measure on.
        names: of the labels, in the order of the data.
    """

    name: str
    columns: tuple[str, ...]
    labels: int = 2
    metrics: tuple[str, ...] = ("accuracy",)
    dataset: str = "nyu-mll/glue"
    label_column: tuple[str, ...] = ("label",)
    validation: str = "validation"
    names: tuple[str, ...] = ()

    @property
    def problem(self) -> str:
        """What Transformers calls it."""
        return "regression" if self.labels == 1 else "single_label_classification"

    def places_of_labels(self, config: PreTrainedConfig) -> list[int]:
        """Return where a model's scores have each label of the data: models name theirs, in orders of their own."""
        given = {str(name).lower(): int(place) for place, name in (config.id2label or {}).items()}
        if self.names and given.keys() == set(self.names):
            return [given[name] for name in self.names]
        if self.names and not all(name.startswith("label_") for name in given):
            logger.warning(
                f"The model's labels are {', '.join(given)}, those of {self.name} are {', '.join(self.names)}: taken "
                "for the same in this order."
            )
        return list(range(self.labels))

    @property
    def script(self) -> tuple[str, ...]:
        """What `evaluate.load` calls its metrics."""
        return ("glue", self.name) if self.dataset.endswith("glue") else (self.name,)

    def encode(
        self, rows: Sequence[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase, max_length: int | None = 128
    ) -> list[dict[str, Any]]:
        """Return rows as inputs of a model, with their labels."""
        label = next((column for column in self.label_column if rows and column in rows[0]), self.label_column[0])
        require_columns(rows, (*self.columns, label))
        texts = [[str(row[column]) for row in rows] for column in self.columns]
        encoded = tokenizer(*texts, truncation=True, max_length=max_length)
        labels = [self._label(row[label], index) for index, row in enumerate(rows)]
        return [
            {**{name: values[index] for name, values in encoded.items()}, "labels": labels[index]}
            for index in range(len(rows))
        ]

    def _label(self, value: Any, index: int) -> int | float:
        number = number_in(value, index, "label")
        if self.labels == 1:
            return number
        if number not in range(self.labels):
            raise CompactConfigError(
                f"`data` has the label {value!r} in row {index}, but {self.name} has the labels 0 to {self.labels - 1}."
            )
        return int(number)

    def measure(self, logits: np.ndarray, labels: np.ndarray, scripts: bool = False) -> dict[str, float]:
        """Return the metrics of logits (N, labels)."""
        predictions = logits.reshape(-1) if self.labels == 1 else logits.argmax(-1)
        return compute(self.metrics, predictions.tolist(), labels.tolist(), self.script if scripts else None)


_INFERENCE = ("entailment", "neutral", "contradiction")
_GLUE = (
    ClassificationTask("sst2", ("sentence",), names=("negative", "positive")),
    ClassificationTask("cola", ("sentence",), metrics=("matthews_correlation",), names=("unacceptable", "acceptable")),
    ClassificationTask(
        "mrpc", ("sentence1", "sentence2"), metrics=("f1", "accuracy"), names=("not_equivalent", "equivalent")
    ),
    ClassificationTask("rte", ("sentence1", "sentence2"), names=("entailment", "not_entailment")),
    ClassificationTask("wnli", ("sentence1", "sentence2"), names=("not_entailment", "entailment")),
    ClassificationTask("qnli", ("question", "sentence"), names=("entailment", "not_entailment")),
    ClassificationTask(
        "qqp", ("question1", "question2"), metrics=("f1", "accuracy"), names=("not_duplicate", "duplicate")
    ),
    ClassificationTask("mnli", ("premise", "hypothesis"), labels=3, validation="validation_matched", names=_INFERENCE),
    ClassificationTask(
        "stsb", ("sentence1", "sentence2"), 1, ("spearmanr", "pearson"), label_column=("label", "score")
    ),
)
GLUE = {task.name: task for task in _GLUE}
XNLI = ClassificationTask("xnli", ("premise", "hypothesis"), labels=3, dataset="facebook/xnli", names=_INFERENCE)


def find_task(name: str) -> ClassificationTask:
    """Return the task of a name as "glue/mrpc" or "xnli"."""
    if name == XNLI.name:
        return XNLI
    short = name.removeprefix("glue/")
    if short not in GLUE:
        raise CompactConfigError(f"`task` is {name!r}, but the tasks of GLUE are {', '.join(GLUE)}.")
    return GLUE[short]
