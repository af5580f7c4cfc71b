"""Pretrain a HashFormer from scratch: an encoder without a vocabulary, which learns to tell replaced words.

    python examples/pretrain_hashformer.py --train_files corpus.txt --variant proj --hashing lsh \
        --output_dir hashformer --max_steps 10000 --per_device_train_batch_size 32 --learning_rate 5e-4 --bf16
    accelerate launch examples/pretrain_hashformer.py --dataset_name wikitext --dataset_config wikitext-103-raw-v1 \
        --streaming --output_dir hashformer --max_steps 100000

The output folder then holds the encoder and its tokenizer: `AutoModelForSequenceClassification.from_pretrained` and
its sisters open it. Interrupted, the same command goes on from the last checkpoint.
"""

from __future__ import annotations

import dataclasses
import sys
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Dataset, IterableDataset, load_dataset
from transformers import AutoConfig, HfArgumentParser, PreTrainedConfig, TrainingArguments, set_seed
from transformers.trainer_utils import get_last_checkpoint
from transformers.utils import logging

import hf_compact_embeddings as hce
from hf_compact_embeddings.finetuning.trainer import MeanLossTrainer, leave_process_group
from hf_compact_embeddings.training.token_manipulation import (
    DataCollatorForTokenManipulation,
    encoder_of,
    packed_rows,
    token_manipulation_model,
)

logger = logging.get_logger(__name__)


@dataclasses.dataclass
class ModelArguments:
    """What is trained."""

    architecture: str = dataclasses.field(default="bert", metadata={"help": "model type of an encoder"})
    overrides: list[str] = dataclasses.field(
        default_factory=list, metadata={"help": "fields of its configuration, as hidden_size=256 num_hidden_layers=4"}
    )
    variant: str = dataclasses.field(default="proj", metadata={"help": "proj, add, pool or emb"})
    hashing: str = dataclasses.field(default="lsh", metadata={"help": "md or lsh"})
    buckets: int = dataclasses.field(default=50_260, metadata={"help": 'rows of the table of "emb"'})
    hash_seed: int = dataclasses.field(default=0, metadata={"help": "draws another family of hashes"})


@dataclasses.dataclass
class DataArguments:
    """What it is trained on."""

    train_files: list[str] | None = dataclasses.field(default=None, metadata={"help": "text files, a text a line"})
    validation_files: list[str] | None = dataclasses.field(default=None, metadata={"help": "the same, held out"})
    dataset_name: str | None = dataclasses.field(default=None, metadata={"help": "a dataset of the Hub instead"})
    dataset_config: str | None = dataclasses.field(default=None, metadata={"help": "its configuration"})
    text_column: str = dataclasses.field(default="text", metadata={"help": "its column with texts"})
    streaming: bool = dataclasses.field(default=False, metadata={"help": "read while training; needs --max_steps"})
    max_length: int = dataclasses.field(default=128, metadata={"help": "tokens of a row"})
    shuffle_probability: float = dataclasses.field(default=0.1, metadata={"help": "of a word from the same row"})
    random_probability: float = dataclasses.field(default=0.1, metadata={"help": "of a random word, of the others"})


def main(arguments: list[str] | None = None) -> None:
    """Pretrain as the command line says."""
    parser = HfArgumentParser((ModelArguments, DataArguments, TrainingArguments))
    model_arguments, data, training = parser.parse_args_into_dataclasses(arguments)
    set_seed(training.seed)
    tokenizer = hce.CompactHashTokenizer(
        hashing=model_arguments.hashing, hash_seed=model_arguments.hash_seed, model_max_length=data.max_length
    )
    model = token_manipulation_model(new_config(model_arguments, data, tokenizer))
    trainer = MeanLossTrainer(
        model=model,
        args=training,
        train_dataset=rows_of(data, "train", tokenizer, training.seed),
        eval_dataset=rows_of(data, "validation", tokenizer, training.seed) if data.validation_files else None,
        data_collator=DataCollatorForTokenManipulation(tokenizer, data.shuffle_probability, data.random_probability),
        processing_class=tokenizer,
    )
    checkpoint = training.resume_from_checkpoint
    if checkpoint is None and Path(training.output_dir).is_dir():
        checkpoint = get_last_checkpoint(training.output_dir)
    result = trainer.train(resume_from_checkpoint=checkpoint)
    trainer.log_metrics("train", result.metrics)
    if data.validation_files:
        trainer.log_metrics("eval", trainer.evaluate())
    if trainer.is_world_process_zero():
        encoder_of(trainer.accelerator.unwrap_model(trainer.model)).save_pretrained(training.output_dir)
        tokenizer.save_pretrained(training.output_dir)


def new_config(model: ModelArguments, data: DataArguments, tokenizer: Any) -> PreTrainedConfig:
    """Return the configuration of a compact encoder for the tokenizer."""
    fields: dict[str, Any] = {"max_position_embeddings": max(512, data.max_length)}
    for override in model.overrides:
        name, separator, value = override.partition("=")
        if not separator:
            sys.exit(f"--overrides: {override!r} is not of the form field=value")
        fields[name] = float(value) if "." in value else int(value)
    hashed = hce.HashConfig.for_tokenizer(tokenizer, variant=model.variant, buckets=model.buckets)
    return AutoConfig.for_model(
        f"compact-{model.architecture}",
        compact_embeddings=hashed,
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        **fields,
    )


def rows_of(data: DataArguments, split: str, tokenizer: Any, seed: int) -> Dataset | IterableDataset:
    """Return the texts of a split as rows of `max_length` tokens."""
    files = data.train_files if split == "train" else data.validation_files
    if files:
        texts = load_dataset("text", data_files={split: files}, split=split, streaming=data.streaming)
    elif data.dataset_name:
        texts = load_dataset(data.dataset_name, data.dataset_config, split=split, streaming=data.streaming)
    else:
        sys.exit("give --train_files or --dataset_name")
    column = "text" if files else data.text_column
    pack = partial(packed, tokenizer=tokenizer, column=column, length=data.max_length)
    rows = texts.select_columns(column).map(pack, batched=True, remove_columns=column)
    return rows.shuffle(seed=seed, buffer_size=10_000) if data.streaming and split == "train" else rows


def packed(batch: dict[str, list[str]], tokenizer: Any, column: str, length: int) -> dict[str, list[Any]]:
    """Join and cut the texts of a batch."""
    return packed_rows(tokenizer, batch[column], length)


if __name__ == "__main__":
    main()
    leave_process_group()
