"""One fine-tuning loop, as everybody has it: an Auto class and Trainer, for compact and dense checkpoints alike.

`evaluate()` and the benchmarks call `classify` and `answer_questions`, which load, train and measure;
the scripts in examples/ build the same Trainers and run them as their flags say.
"""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from accelerate import PartialState
from transformers import (
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    DataCollatorWithPadding,
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainingArguments,
    set_seed,
)

from ..modeling.errors import CompactConfigError
from .classification import ClassificationTask
from .data import Rows, require_padding
from .question_answering import QuestionAnsweringTask

ModelType = TypeVar("ModelType", bound=PreTrainedModel)
# What a window of a context says beside a model's inputs.
_NOT_INPUTS = ("row", "offsets")


class MeanLossTrainer(Trainer):
    """Trains models whose loss is the mean over a batch, and gives the same steps on any number of processes.

    Trainer asks only whether `forward` takes further arguments to tell whether the loss is normalised by
    `num_items_in_batch`. Heads that classify or score take them, and ignore that one: their loss, and their gradient,
    would be multiplied by the number of processes.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        """Take what Trainer takes."""
        super().__init__(*arguments, **options)
        self.model_accepts_loss_kwargs = False


def trainable(model: ModelType) -> ModelType:
    """Return a model that was loaded in float16 in float32: in float16 Adam's steps end in NaN.

    Its squared gradients are below what float16 holds, and Trainer's `fp16` wants float32 weights too. bfloat16 has
    float32's range, and stays.
    """
    return model.float() if model.dtype == torch.float16 else model


def leave_process_group() -> None:
    """Stop the threads through which this process trained together with others, if it did.

    Last of all, when no Trainer is in use any more: a thread that frees a tensor while Python ends aborts the process,
    whose work is done, and with it the launch.
    """
    # The model that Trainer wraps holds the group, and a Trainer is only freed as a cycle.
    gc.collect()
    PartialState().destroy_process_group()


def classification_trainer(
    model: PreTrainedModel,
    task: ClassificationTask,
    tokenizer: PreTrainedTokenizerBase,
    arguments: TrainingArguments,
    *,
    train: Rows | None = None,
    validation: Rows | None = None,
    max_length: int = 128,
    hub_metric: bool = False,
) -> MeanLossTrainer:
    """Return a Trainer of a model with a classification head, which measures the task's metrics.

    Args:
        model: to train or to measure. One that is to be trained gets the names of the labels.
        task: whose labels and metrics these are.
        tokenizer: the model's.
        arguments: of the training.
        train: rows to train on.
        validation: rows that `evaluate()` of the Trainer measures on.
        max_length: of an input in tokens.
        hub_metric: let the Hub's script compute the metrics.
    """
    require_padding(tokenizer)
    text_config = model.config.get_text_config()
    if text_config.pad_token_id is None:
        # Heads that read the last token find it by what batches are padded with.
        text_config.pad_token_id = tokenizer.pad_token_id
    if train is not None:
        task.name_labels(model.config)

    def metrics(found: EvalPrediction) -> dict[str, float]:
        logits = task.in_order_of_labels(found.predictions, model.config)
        return task.measure(logits, np.asarray(found.label_ids), hub_metric)

    return MeanLossTrainer(
        model=model,
        args=arguments,
        train_dataset=None if train is None else task.encode(train, tokenizer, max_length),
        eval_dataset=None if validation is None else task.encode(validation, tokenizer, max_length),
        data_collator=DataCollatorWithPadding(tokenizer),
        processing_class=tokenizer,
        compute_metrics=metrics,
    )


def answer_trainer(
    model: PreTrainedModel, task: QuestionAnsweringTask, arguments: TrainingArguments, train: Rows | None = None
) -> MeanLossTrainer:
    """Return a Trainer of a model that marks answers in contexts.

    Args:
        model: to train or to measure.
        task: how contexts are cut into windows.
        arguments: of the training.
        train: rows to train on.
    """
    return MeanLossTrainer(
        model=model,
        args=arguments,
        train_dataset=None if train is None else task.windows(train, with_answers=True),
        data_collator=DataCollatorWithPadding(task.tokenizer),
        processing_class=task.tokenizer,
    )


def predicted_answers(trainer: Trainer, task: QuestionAnsweringTask, rows: Rows) -> dict[str, str]:
    """Return the best answer for each question's id."""
    windows = task.windows(rows, with_answers=False)
    inputs = [{name: value for name, value in window.items() if name not in _NOT_INPUTS} for window in windows]
    starts, ends = trainer.predict(inputs).predictions[:2]
    return task.answers(rows, windows, starts, ends)


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
    """Return the metrics of a checkpoint on `data`, trained first with a fresh head if there are `train` rows."""
    with tempfile.TemporaryDirectory() as scratch:
        arguments = _training_arguments(scratch, seed, args)
        set_seed(seed)
        head = {"num_labels": task.num_labels, "problem_type": task.problem_type} if train is not None else {}
        model = AutoModelForSequenceClassification.from_pretrained(folder, **head)
        if model.config.num_labels != task.num_labels:
            raise CompactConfigError(
                f"The model has {model.config.num_labels} labels, but {task.name} has {task.num_labels}: "
                "give `train` rows."
            )
        model = model if train is None else trainable(model)
        trainer = classification_trainer(model, task, tokenizer, arguments, train=train, max_length=max_length)
        _train_quietly(trainer)
        found = trainer.predict(task.encode(data, tokenizer, max_length)).metrics or {}
    return {name: found[f"test_{name}"] for name in task.metrics}


def answer_questions(
    folder: str | Path,
    tokenizer: PreTrainedTokenizerBase,
    data: Rows,
    train: Rows | None = None,
    seed: int = 0,
    args: Mapping[str, Any] | None = None,
    max_length: int = 384,
) -> dict[str, float]:
    """Return exact_match and f1 of a checkpoint on `data`, trained first if there are `train` rows."""
    task = QuestionAnsweringTask(tokenizer, max_length, stride=min(128, max_length // 3))
    with tempfile.TemporaryDirectory() as scratch:
        arguments = _training_arguments(scratch, seed, args)
        set_seed(seed)
        model = AutoModelForQuestionAnswering.from_pretrained(folder)
        trainer = answer_trainer(model if train is None else trainable(model), task, arguments, train)
        _train_quietly(trainer)
        answers = predicted_answers(trainer, task, data)
    return task.measure(data, answers)


def _train_quietly(trainer: Trainer) -> None:
    """Train where there is something to train on."""
    trainer.remove_callback(PrinterCallback)
    if trainer.train_dataset is not None:
        trainer.train()


def _training_arguments(folder: str, seed: int, given: Mapping[str, Any] | None) -> TrainingArguments:
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


def save_with_tokenizer(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, with_head: bool = True
) -> Path:
    """Save a model and its tokenizer; without its head, whoever loads it starts a new one."""
    state = model.state_dict()
    if not with_head and model.base_model is not model:
        prefix = model.base_model_prefix + "."
        state = {name: value for name, value in state.items() if name.startswith(prefix)}
    model.save_pretrained(folder, state_dict=state)
    tokenizer.save_pretrained(folder)
    return folder
