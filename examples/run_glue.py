"""Fine-tune a dense or compact model on a task of GLUE, or on your own labelled texts.

    python examples/run_glue.py --model_name_or_path sentence-transformers/all-MiniLM-L6-v2 --compact_ratio 100 \
        --task_name mrpc --do_train --do_eval --output_dir mrpc-compact

Instead of `--compact_ratio` or `--compact_method`, the model can be a compact folder or a dense one.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from transformers import (
    AutoModelForSequenceClassification,
    DataCollatorWithPadding,
    EvalPrediction,
    HfArgumentParser,
    TrainingArguments,
    set_seed,
)

import hf_compact_embeddings  # noqa: F401
from hf_compact_embeddings.evaluation.classification import find_task
from hf_compact_embeddings.training.mean_loss import MeanLossTrainer
from hf_compact_embeddings.training.script_arguments import DataArguments, ModelArguments, run_stages


@dataclasses.dataclass
class GlueArguments(DataArguments):
    """The data, and which task it is of."""

    task_name: str = dataclasses.field(default="sst2", metadata={"help": "cola, mnli, mrpc, qnli, qqp, rte, sst2 …"})


def main() -> None:
    """Train, measure, predict."""
    parser = HfArgumentParser((ModelArguments, GlueArguments, TrainingArguments))
    models, data, arguments = parser.parse_args_into_dataclasses()
    set_seed(arguments.seed)
    task = find_task(f"glue/{data.task_name}")
    if data.train_file is None and data.validation_file is None and data.dataset_name is None:
        data.dataset_name, data.dataset_config_name = task.dataset, task.name
    model, tokenizer = models.load(
        AutoModelForSequenceClassification, arguments.seed, num_labels=task.labels, problem_type=task.problem
    )

    def encoded(split: str) -> list[dict]:
        return task.encode(data.rows(split, task.validation if split == "validation" else None), tokenizer, limit)

    def metrics(found: EvalPrediction) -> dict[str, float]:
        logits = found.predictions[0] if isinstance(found.predictions, tuple) else found.predictions
        return task.measure(np.asarray(logits), np.asarray(found.label_ids), scripts=True)

    limit = min(data.max_seq_length, tokenizer.model_max_length)
    trainer = MeanLossTrainer(
        model=model,
        args=arguments,
        train_dataset=encoded("train") if arguments.do_train else None,
        eval_dataset=encoded("validation") if arguments.do_eval else None,
        data_collator=DataCollatorWithPadding(tokenizer),
        processing_class=tokenizer,
        compute_metrics=metrics,
    )
    run_stages(
        trainer,
        arguments,
        lambda split: trainer.evaluate(None if split == "validation" else encoded(split)),
        tasks="text-classification",
        dataset=f"GLUE {task.name.upper()}",
    )


if __name__ == "__main__":
    main()
