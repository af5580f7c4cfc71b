"""Tasks that classify or score texts: those of GLUE, and XNLI."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from transformers import PreTrainedConfig, PreTrainedTokenizerBase
from transformers.utils import logging

from ..modeling.errors import CompactConfigError
from .data import Rows, number_in, require_columns
from .metrics import compute, compute_on_hub

logger = logging.get_logger(__name__)


@dataclasses.dataclass(frozen=True)
class ClassificationTask:
    """A task.

    Attributes:
        name: after which its data set's configuration on the Hub is named.
        columns: of the text, or of both texts.
        num_labels: how many there are; 1 for a score.
        metrics: their keys, the one that is reported first in front.
        dataset: its data set's Hub id; empty where the data is of the user's own.
        label_column: where the label is, with other names that it goes by.
        validation: the name of the split to measure on.
        label_names: in the order of the data.
    """

    name: str
    columns: tuple[str, ...]
    num_labels: int = 2
    metrics: tuple[str, ...] = ("accuracy",)
    dataset: str = "nyu-mll/glue"
    label_column: tuple[str, ...] = ("label",)
    validation: str = "validation"
    label_names: tuple[str, ...] = ()

    @property
    def problem_type(self) -> str:
        """The task's kind, in the words of a model's configuration."""
        return "regression" if self.num_labels == 1 else "single_label_classification"

    def in_order_of_labels(self, scores: Any, config: PreTrainedConfig) -> np.ndarray:
        """Return a model's scores (N, labels), or the first of its outputs, in the order of the data's labels."""
        return np.asarray(scores[0] if isinstance(scores, tuple) else scores)[:, self._columns_of_labels(config)]

    def _columns_of_labels(self, config: PreTrainedConfig) -> list[int]:
        """Return which column of a model's scores is each label of the data: models have orders of their own."""
        given = {str(name).lower(): int(index) for index, name in (config.id2label or {}).items()}
        if self.label_names and given.keys() == set(self.label_names):
            return [given[name] for name in self.label_names]
        if self.label_names and not all(name.startswith("label_") for name in given):
            logger.warning(
                f"The model's labels are {', '.join(given)}, those of {self.name} are "
                f"{', '.join(self.label_names)}: taken for the same in this order."
            )
        return list(range(self.num_labels))

    def split_on_hub(self, split: str) -> str:
        """Return what its data set on the Hub calls "train", "validation" or "test"."""
        return split if split == "train" else self.validation.replace("validation", split)

    def name_labels(self, config: PreTrainedConfig) -> None:
        """Give a model that is to be trained the names of the labels, in the order of the data."""
        if self.label_names:
            config.id2label = dict(enumerate(self.label_names))
            config.label2id = {name: index for index, name in enumerate(self.label_names)}

    @property
    def hub_metric(self) -> tuple[str, ...]:
        """What `evaluate.load` calls its metrics, or nothing."""
        if self.dataset.endswith("glue"):
            return "glue", self.name
        return (self.name,) if self.dataset else ()

    def encode(
        self, rows: Sequence[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase, max_length: int | None = 128
    ) -> list[dict[str, Any]]:
        """Return rows as inputs of a model, with their labels."""
        label = self._label_column_of(rows) or self.label_column[0]
        require_columns(rows, (*self.columns, label))
        labels = [self._label(row[label], index) for index, row in enumerate(rows)]
        inputs = self.encode_texts(rows, tokenizer, max_length)
        return [{**row, "labels": value} for row, value in zip(inputs, labels, strict=True)]

    def encode_texts(
        self, rows: Sequence[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase, max_length: int | None = 128
    ) -> list[dict[str, Any]]:
        """Return rows as inputs of a model, without labels."""
        require_columns(rows, self.columns)
        texts = [[str(row[column]) for row in rows] for column in self.columns]
        encoded = tokenizer(*texts, truncation=True, max_length=max_length)
        return [{name: values[index] for name, values in encoded.items()} for index in range(len(rows))]

    def has_labels(self, rows: Sequence[Mapping[str, Any]]) -> bool:
        """Return whether rows have labels: those of GLUE's test parts have none, or -1."""
        column = self._label_column_of(rows)
        return column is not None and any(str(row.get(column)) not in _NO_LABEL for row in rows)

    def _label_column_of(self, rows: Sequence[Mapping[str, Any]]) -> str | None:
        return next((column for column in self.label_column if rows and column in rows[0]), None)

    def _label(self, value: Any, index: int) -> int | float:
        if value in self.label_names:
            return self.label_names.index(value)
        number = number_in(value, index, "label", self.label_names)
        if self.num_labels == 1:
            return number
        if number not in range(self.num_labels):
            raise CompactConfigError(
                f"`data` has the label {value!r} in row {index}, but {self.name} has the labels 0 to "
                f"{self.num_labels - 1}."
            )
        return int(number)

    def measure(self, logits: np.ndarray, labels: np.ndarray, hub_metric: bool = False) -> dict[str, float]:
        """Return the metrics of logits (N, labels); with `hub_metric` the Hub's script computes them."""
        predictions, references = self.decide(logits).tolist(), labels.tolist()
        if hub_metric:
            return compute_on_hub(self.hub_metric, predictions, references)
        return compute(self.metrics, predictions, references)

    def decide(self, logits: np.ndarray) -> np.ndarray:
        """Return the label, or the score, that logits (N, labels) give each row."""
        return logits.reshape(-1) if self.num_labels == 1 else logits.argmax(-1)

    def label_name(self, decision: int | float) -> str:
        """Return the name of a label, or a score in digits."""
        if self.num_labels == 1:
            return f"{decision:.3f}"
        return self.label_names[int(decision)] if self.label_names else str(int(decision))


# As numbers, and as they are read from CSV files.
_NO_LABEL = ("-1", "-1.0", "", "None")
_INFERENCE = ("entailment", "neutral", "contradiction")
_GLUE = (
    ClassificationTask("sst2", ("sentence",), label_names=("negative", "positive")),
    ClassificationTask(
        "cola", ("sentence",), metrics=("matthews_correlation",), label_names=("unacceptable", "acceptable")
    ),
    ClassificationTask(
        "mrpc", ("sentence1", "sentence2"), metrics=("f1", "accuracy"), label_names=("not_equivalent", "equivalent")
    ),
    ClassificationTask("rte", ("sentence1", "sentence2"), label_names=("entailment", "not_entailment")),
    ClassificationTask("wnli", ("sentence1", "sentence2"), label_names=("not_entailment", "entailment")),
    ClassificationTask("qnli", ("question", "sentence"), label_names=("entailment", "not_entailment")),
    ClassificationTask(
        "qqp", ("question1", "question2"), metrics=("f1", "accuracy"), label_names=("not_duplicate", "duplicate")
    ),
    ClassificationTask(
        "mnli", ("premise", "hypothesis"), num_labels=3, validation="validation_matched", label_names=_INFERENCE
    ),
    ClassificationTask(
        "stsb", ("sentence1", "sentence2"), 1, ("spearmanr", "pearson"), label_column=("label", "score")
    ),
)
GLUE = {task.name: task for task in _GLUE}
XNLI = ClassificationTask(
    "xnli", ("premise", "hypothesis"), num_labels=3, dataset="facebook/xnli", label_names=_INFERENCE
)


def task_of_rows(rows: Rows, config: PreTrainedConfig | None = None) -> ClassificationTask:
    """Return the task of labelled texts that are of no known data set.

    Args:
        rows: with a text (column text or sentence) or two (sentence1, sentence2); labels are names, or 0, 1, 2 and on.
        config: of a model that has learned the task, whose labels it are then; else they are those of the rows.
    """
    require_columns(rows, ())
    known = (("sentence1", "sentence2"), ("sentence",), ("text",))
    columns = next((names for names in known if all(name in rows[0] for name in names)), ("text",))
    if config is not None:
        own = [str(config.id2label[index]) for index in range(config.num_labels)]
        label_names = () if all(name.lower().startswith("label_") for name in own) else tuple(own)
        return ClassificationTask("texts", columns, config.num_labels, dataset="", label_names=label_names)
    require_columns(rows, (*columns, "label"))
    values = [row["label"] for row in rows]
    try:
        numbers = [float(value) for value in values]
    except (TypeError, ValueError):
        label_names = tuple(sorted({str(value) for value in values}))
        return ClassificationTask("texts", columns, len(label_names), dataset="", label_names=label_names)
    if any(number < 0 or not number.is_integer() for number in numbers):
        raise CompactConfigError(
            "`data` has labels that are neither names nor the numbers 0, 1, 2 and on; for scores take the task stsb."
        )
    return ClassificationTask("texts", columns, max(2, int(max(numbers)) + 1), dataset="")


def find_task(name: str) -> ClassificationTask:
    """Return the task of a name as "glue/mrpc" or "xnli"."""
    if name == XNLI.name:
        return XNLI
    short = name.removeprefix("glue/")
    if short not in GLUE:
        raise CompactConfigError(f"`task` is {name!r}, but the tasks of GLUE are {', '.join(GLUE)}.")
    return GLUE[short]
