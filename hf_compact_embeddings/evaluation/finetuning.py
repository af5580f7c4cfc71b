"""Fine-tuning a compact or dense checkpoint on a task, as everybody does: an Auto class and Trainer."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from transformers import (
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    DataCollatorWithPadding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainingArguments,
    set_seed,
)

from ..modeling.errors import CompactConfigError
from ..training.mean_loss import MeanLossTrainer
from ..training.precision import trainable
from .answers import AnswerTask
from .classification import ClassificationTask
from .data import Rows
from .sentences import require_padding


def training_arguments(folder: str, seed: int, given: Mapping[str, Any] | None) -> TrainingArguments:
    """Return arguments for a run that keeps nothing, with the values that fine-tuning commonly starts from."""
    fields: dict[str, Any] = {
        "output_dir": folder,
        "save_strategy": "no",
        "learning_rate": 5e-5,
        "num_train_epochs": 3,
        "per_device_train_batch_size": 32,
        "per_device_eval_batch_size": 64,
        "disable_tqdm": True,
        "logging_strategy": "no",
    }
    try:
        return TrainingArguments(**{**fields, **(given or {}), "seed": seed})
    except (TypeError, ValueError) as error:
        raise CompactConfigError(f"`args` is not accepted by TrainingArguments: {error}") from error


def classify(
    folder: str | Path,
    task: ClassificationTask,
    tokenizer: PreTrainedTokenizerBase,
    data: Rows,
    train: Rows | None = None,
    seed: int = 0,
    args: Mapping[str, Any] | None = None,
    max_length: int = 128,
) -> dict[str, float]:
    """Return the metrics of a checkpoint with a classification head, trained first if there are `train` rows."""
    with tempfile.TemporaryDirectory() as scratch:
        arguments = training_arguments(scratch, seed, args)
        set_seed(seed)
        head = {"num_labels": task.labels, "problem_type": task.problem} if train is not None else {}
        model = AutoModelForSequenceClassification.from_pretrained(folder, **head)
        _let_pad(model, tokenizer)
        if model.config.num_labels != task.labels:
            raise CompactConfigError(
                f"The model has {model.config.num_labels} labels, but {task.name} has {task.labels}: give `train` rows."
            )
        if train is not None:
            model = trainable(model)
            task.name_labels(model.config)
        trainer = MeanLossTrainer(
            model=model,
            args=arguments,
            train_dataset=None if train is None else task.encode(train, tokenizer, max_length),
            data_collator=DataCollatorWithPadding(tokenizer),
        )
        trainer.remove_callback(PrinterCallback)
        if train is not None:
            trainer.train()
        found = trainer.predict(task.encode(data, tokenizer, max_length))
    return task.measure(task.in_order(found.predictions, model.config), np.asarray(found.label_ids))


def answer(
    folder: str | Path,
    tokenizer: PreTrainedTokenizerBase,
    data: Rows,
    train: Rows | None = None,
    seed: int = 0,
    args: Mapping[str, Any] | None = None,
    max_length: int = 384,
) -> dict[str, float]:
    """Return exact_match and f1 of a checkpoint, which is trained first if there are `train` rows."""
    task = AnswerTask(tokenizer, max_length, stride=min(128, max_length // 3))
    with tempfile.TemporaryDirectory() as scratch:
        arguments = training_arguments(scratch, seed, args)
        set_seed(seed)
        model = AutoModelForQuestionAnswering.from_pretrained(folder)
        model = model if train is None else trainable(model)
        trainer = MeanLossTrainer(
            model=model,
            args=arguments,
            train_dataset=None if train is None else task.windows(train, with_answers=True),
            data_collator=DataCollatorWithPadding(task.tokenizer),
        )
        trainer.remove_callback(PrinterCallback)
        if train is not None:
            trainer.train()
        windows = task.windows(data, with_answers=False)
        starts, ends = span_scores(trainer, windows)
    return task.measure(data, task.answers(data, windows, starts, ends))


def _let_pad(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Tell a model how its batches are padded, which it must know to find the last token."""
    require_padding(tokenizer)
    if model.config.get_text_config().pad_token_id is None:
        model.config.get_text_config().pad_token_id = tokenizer.pad_token_id


def span_scores(trainer: Trainer, windows: list[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """Return the scores (windows, T) of being the first and the last token of the answer."""
    inputs = [{name: value for name, value in window.items() if name not in ("row", "offsets")} for window in windows]
    predictions = trainer.predict(inputs).predictions
    return predictions[0], predictions[1]


def save_beside(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, head: bool = True) -> Path:
    """Save a model with its tokenizer; without its head, so that whoever loads it starts a new one."""
    state = model.state_dict()
    if not head and model.base_model is not model:
        prefix = model.base_model_prefix + "."
        state = {name: value for name, value in state.items() if name.startswith(prefix)}
    model.save_pretrained(folder, state_dict=state)
    tokenizer.save_pretrained(folder)
    return folder
