"""Train a dense or compact masked language model further on text.

    python examples/run_mlm.py --model_name_or_path google-bert/bert-base-uncased --compact_ratio 25 \
        --train_file train.txt --validation_file valid.txt --do_train --do_eval --output_dir mlm-compact

Lines are joined and cut into pieces of equal length. `hf-compact calibrate` distils against the
original instead.
"""

from __future__ import annotations

import dataclasses
import math

from transformers import (
    AutoModelForMaskedLM,
    DataCollatorForLanguageModeling,
    HfArgumentParser,
    TrainingArguments,
    set_seed,
)

from hf_compact_embeddings import KeepCompactCard
from hf_compact_embeddings.finetuning.data import require_columns, stream_pieces
from hf_compact_embeddings.finetuning.trainer import MeanLossTrainer, leave_process_group
from hf_compact_embeddings.scripts import DataArguments, ModelArguments, run_stages


@dataclasses.dataclass
class TextArguments(DataArguments):
    """The text, and how it is cut."""

    text_column: str = dataclasses.field(default="text", metadata={"help": "where rows have their text"})
    mlm_probability: float = dataclasses.field(default=0.15, metadata={"help": "share of the tokens to predict"})


def main() -> None:
    """Train, measure."""
    parser = HfArgumentParser((ModelArguments, TextArguments, TrainingArguments))
    models, data, arguments = parser.parse_args_into_dataclasses()
    set_seed(arguments.seed)
    model, tokenizer = models.load(AutoModelForMaskedLM, arguments.seed)
    limit = min(data.max_seq_length, tokenizer.model_max_length)

    def pieces(split: str) -> list[dict[str, list[int]]]:
        rows = data.rows(split)
        require_columns(rows, [data.text_column])
        texts = (str(row[data.text_column]) for row in rows)
        return [{"input_ids": piece} for piece in stream_pieces(texts, tokenizer, limit)]

    if tokenizer.pad_token is None:
        # Pieces are of equal length, so that none is padded; the collator asks for a token all the same.
        tokenizer.pad_token = tokenizer.eos_token
    trainer = MeanLossTrainer(
        model=model,
        args=arguments,
        train_dataset=pieces("train") if arguments.do_train else None,
        eval_dataset=pieces("validation") if arguments.do_eval else None,
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm_probability=data.mlm_probability),
        processing_class=tokenizer,
    )

    def measure(split: str) -> dict[str, float]:
        # The same positions are masked each time.
        set_seed(arguments.seed)
        found = trainer.evaluate(None if split == "validation" else pieces(split))
        return found | {"perplexity": math.exp(found["eval_loss"])}

    trainer.add_callback(KeepCompactCard(trainer))
    run_stages(trainer, arguments, measure, tasks="fill-mask")


if __name__ == "__main__":
    main()
    leave_process_group()
