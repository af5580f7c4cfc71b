"""Fine-tune a dense or compact multilingual model on XNLI, or on files in its layout.

    python examples/run_xnli.py --model_name_or_path FacebookAI/xlm-roberta-base --compact_ratio 100 \
        --train_language en --language sw --do_train --do_eval --output_dir xnli-compact

Rows have the columns premise, hypothesis and label (0 entailment, 1 neutral, 2 contradiction). Where they have a column
`language` too, rows are chosen by it.
"""

from __future__ import annotations

import dataclasses

from transformers import AutoModelForSequenceClassification, HfArgumentParser, TrainingArguments, set_seed

from hf_compact_embeddings import CompactConfigError, KeepCompactCard
from hf_compact_embeddings.finetuning.classification import XNLI
from hf_compact_embeddings.finetuning.trainer import classification_trainer, leave_process_group
from hf_compact_embeddings.scripts import DataArguments, ModelArguments, predict_labels, run_stages


@dataclasses.dataclass
class XnliArguments(DataArguments):
    """The data, and which languages of it."""

    language: str | None = dataclasses.field(default=None, metadata={"help": "language to measure on"})
    train_language: str | None = dataclasses.field(default=None, metadata={"help": "language to train on"})
    hub_metric: bool = dataclasses.field(
        default=False, metadata={"help": "let the script of the Hub compute the metrics; needs `evaluate`"}
    )

    def chosen(self, split: str) -> list[dict]:
        """Return the rows of a split in its language."""
        language = (self.train_language or self.language) if split == "train" else self.language
        if self.dataset_name is not None:
            self.dataset_config_name = language or "en"
        rows = self.rows(split)
        if language is None or "language" not in rows[0]:
            return rows
        kept = [row for row in rows if row["language"] == language]
        if not kept:
            there = ", ".join(sorted({row["language"] for row in rows}))
            raise CompactConfigError(f"`--language` is {language!r}, but the data has {there}.")
        return kept


def main() -> None:
    """Train, measure, predict."""
    parser = HfArgumentParser((ModelArguments, XnliArguments, TrainingArguments))
    models, data, arguments = parser.parse_args_into_dataclasses()
    set_seed(arguments.seed)
    if data.train_file is None and data.validation_file is None and data.dataset_name is None:
        data.dataset_name = XNLI.dataset
    model, tokenizer = models.load(AutoModelForSequenceClassification, arguments.seed, num_labels=XNLI.num_labels)
    limit = min(data.max_seq_length, tokenizer.model_max_length)

    trainer = classification_trainer(
        model,
        XNLI,
        tokenizer,
        arguments,
        train=data.chosen("train") if arguments.do_train else None,
        validation=data.chosen("validation") if arguments.do_eval else None,
        max_length=limit,
        hub_metric=data.hub_metric,
    )

    def measure(split: str) -> dict[str, float]:
        return trainer.evaluate() if split == "validation" else predict_labels(trainer, XNLI, data.chosen(split), limit)

    trainer.add_callback(KeepCompactCard(trainer))
    run_stages(trainer, arguments, measure, tasks="text-classification", dataset="XNLI")


if __name__ == "__main__":
    main()
    leave_process_group()
