"""What the scripts in examples/ share: flags for model and data, the stages that they run, the files they write."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

from transformers import (
    AutoConfig,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
)

from .compression import compress
from .finetuning.classification import ClassificationTask
from .finetuning.data import Rows, read_rows
from .finetuning.trainer import trainable
from .modeling.errors import CompactConfigError
from .settings import parse_setting


def _flag(default: Any, text: str) -> Any:
    metadata = {"help": text}
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass
class ModelArguments:
    """Which model to train: dense, compact already, or made compact first.

    Attributes:
        model_name_or_path: Hub id or folder.
        tokenizer_name: Hub id or folder of the tokenizer.
        model_revision: branch, tag or commit.
        compact_method: make the table compact with this method first.
        compact_ratio: make it at least this many times smaller; without a method the best one is chosen.
        compact_options: options of the method, as name=value.
        compact_texts: text, JSON or CSV file (column text) to count tokens in: frequent ones are fitted more closely.
    """

    model_name_or_path: str = _flag("", "Hub id or folder of a dense or a compact model")
    tokenizer_name: str | None = _flag(None, "Hub id or folder of the tokenizer, where it is not the model's")
    model_revision: str = _flag("main", "branch, tag or commit of a Hub id")
    compact_method: str | None = _flag(None, "make the table compact with this method first")
    compact_ratio: float | None = _flag(None, "make the table at least this many times smaller")
    compact_options: list[str] = _flag([], "options of the method, as name=value")
    compact_texts: str | None = _flag(None, "text, JSON or CSV file to count tokens in for the fit")

    def load(self, auto_class: Any, seed: int = 0, **changes: Any) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """Return the model and its tokenizer.

        Args:
            auto_class: the Auto class of the task.
            seed: of the fit.
            changes: of the model's configuration, for example `num_labels`.
        """
        if not self.model_name_or_path:
            raise CompactConfigError("`--model_name_or_path` is missing.")
        name, revision = self.model_name_or_path, self.model_revision
        tokenizer = AutoTokenizer.from_pretrained(
            self.tokenizer_name or name, revision=revision, trust_remote_code=False
        )
        model = trainable(auto_class.from_pretrained(name, revision=revision, **changes))
        if self.compact_method is None and self.compact_ratio is None:
            if self.compact_options or self.compact_texts:
                raise CompactConfigError("`--compact_options` and `--compact_texts` need a method or a ratio.")
            return model, tokenizer
        if AutoConfig.from_pretrained(name, revision=revision).model_type.startswith("compact-"):
            raise CompactConfigError(f"`--model_name_or_path` {name!r} is compact already.")
        options = dict(parse_setting(words, "--compact_options") for words in self.compact_options)
        if self.compact_ratio is not None:
            options["ratio"] = self.compact_ratio
        compact = compress(
            model, self.compact_method, tokenizer=tokenizer, texts=self.compact_texts, seed=seed, **options
        )
        return compact, tokenizer


@dataclasses.dataclass
class DataArguments:
    """Which data to train and to measure on.

    Attributes:
        dataset_name: Hub id.
        dataset_config_name: its configuration.
        train_file: JSON, CSV or text file instead.
        validation_file: the same for measuring.
        test_file: the same for predicting.
        max_train_samples: use the first ones only.
        max_eval_samples: use the first ones only.
        max_predict_samples: use the first ones only.
        max_seq_length: of an input in tokens.
    """

    dataset_name: str | None = _flag(None, "Hub id of the data")
    dataset_config_name: str | None = _flag(None, "configuration of the data on the Hub")
    train_file: str | None = _flag(None, "JSON, CSV or text file to train on")
    validation_file: str | None = _flag(None, "JSON, CSV or text file to measure on")
    test_file: str | None = _flag(None, "JSON, CSV or text file to predict")
    max_train_samples: int | None = _flag(None, "train on the first rows only")
    max_eval_samples: int | None = _flag(None, "measure on the first rows only")
    max_predict_samples: int | None = _flag(None, "predict the first rows only")
    max_seq_length: int = _flag(128, "longest input in tokens")

    def rows(self, split: str, hub_split: str | None = None) -> Rows:
        """Return the rows of "train", "validation" or "test".

        Args:
            split: which ones.
            hub_split: what they are called on the Hub, where that is something else.
        """
        file = {"train": self.train_file, "validation": self.validation_file, "test": self.test_file}[split]
        if file is None and self.dataset_name is None:
            raise CompactConfigError(f"`--{split}_file` is missing: give it, or `--dataset_name`.")
        found = read_rows(file or self.dataset_name, hub_split or split, self.dataset_config_name)
        limit = {"train": self.max_train_samples, "validation": self.max_eval_samples, "test": self.max_predict_samples}
        return found[: limit[split]]


def run_stages(
    trainer: Trainer,
    arguments: TrainingArguments,
    measure: Callable[[str], dict[str, float]],
    **card: Any,
) -> dict[str, float]:
    """Train, measure and predict as the flags say, with logs and files under the names that Transformers' scripts use.

    Args:
        trainer: ready to train.
        arguments: the flags.
        measure: returns the metrics of "validation" or "test".
        card: what the model card names.
    """
    found: dict[str, float] = {}
    if arguments.do_train:
        done = trainer.train(resume_from_checkpoint=arguments.resume_from_checkpoint)
        trainer.save_model()
        trainer.log_metrics("train", done.metrics)
        trainer.save_metrics("train", done.metrics)
        trainer.save_state()
    for wanted, split, name in (
        (arguments.do_eval, "validation", "eval"),
        (arguments.do_predict, "test", "predict"),
    ):
        if wanted:
            found = {f"{name}_{key.removeprefix('eval_')}": value for key, value in measure(split).items()}
            trainer.log_metrics(name, found)
            trainer.save_metrics(name, found)
    if arguments.push_to_hub:
        trainer.push_to_hub(**card)
    return found


def predict_labels(trainer: Trainer, task: ClassificationTask, rows: Rows, max_length: int) -> dict[str, float]:
    """Write `predict_results_<task>.txt`, a line for each row, and return the metrics where rows have labels."""
    encode = task.encode if task.has_labels(rows) else task.encode_texts
    tokenizer = cast(PreTrainedTokenizerBase, trainer.processing_class)
    found = trainer.predict(encode(rows, tokenizer, max_length), metric_key_prefix="eval")
    decisions = task.decide(task.in_order_of_labels(found.predictions, trainer.model.config))
    if trainer.is_world_process_zero():
        lines = [f"{index}\t{task.label_name(decision)}" for index, decision in enumerate(decisions)]
        path = Path(str(trainer.args.output_dir)) / f"predict_results_{task.name}.txt"
        path.write_text("\n".join(["index\tprediction", *lines]) + "\n", encoding="utf-8")
    return found.metrics or {}


def write_answers(trainer: Trainer, answers: Mapping[str, str], stage: str) -> None:
    """Write the answers to each question's id as `<stage>_predictions.json`."""
    if trainer.is_world_process_zero():
        path = Path(str(trainer.args.output_dir)) / f"{stage}_predictions.json"
        path.write_text(json.dumps(answers, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
