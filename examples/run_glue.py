"""Fine-tune a dense or compact model on a task of GLUE, or on your own labelled texts.

    python examples/run_glue.py --model_name_or_path sentence-transformers/all-MiniLM-L6-v2 --compact_ratio 100 \
        --task_name mrpc --do_train --do_eval --output_dir mrpc-compact

Instead of `--compact_ratio` or `--compact_method`, the model can be a compact folder or a dense one. Texts of your own
are files with a column text (or sentence1 and sentence2) and a column label, of names or of numbers from 0:

    python examples/run_glue.py --model_name_or_path mine-compact --train_file train.csv --validation_file rest.csv \
        --test_file new.csv --do_train --do_eval --do_predict --output_dir topics-compact

`--do_predict` writes predict_results_<task>.txt; labels are not needed there. scikit-learn and SciPy compute the
metrics; `--hub_metric` lets the task's script of the Hub do it, which `evaluate` downloads and runs.
"""

from __future__ import annotations

import dataclasses

from transformers import AutoConfig, AutoModelForSequenceClassification, HfArgumentParser, TrainingArguments, set_seed

from hf_compact_embeddings import CompactConfigError, KeepCompactCard
from hf_compact_embeddings.finetuning.classification import ClassificationTask, find_task, task_of_rows
from hf_compact_embeddings.finetuning.trainer import classification_trainer, leave_process_group
from hf_compact_embeddings.scripts import DataArguments, ModelArguments, predict_labels, run_stages


@dataclasses.dataclass
class GlueArguments(DataArguments):
    """The data, and which task it is of."""

    task_name: str | None = dataclasses.field(
        default=None, metadata={"help": "cola, mnli, mrpc, qnli, qqp, rte, sst2 …; without it, texts of your own"}
    )
    hub_metric: bool = dataclasses.field(
        default=False, metadata={"help": "let the script of the Hub compute the metrics; needs `evaluate`"}
    )

    def task(self, model: ModelArguments, training: bool) -> ClassificationTask:
        """Return the task, and see to where its data is."""
        files = [self.train_file, self.validation_file, self.test_file]
        if self.task_name is None and not any(files) and self.dataset_name is None:
            raise CompactConfigError("Give `--task_name`, or files of your own such as `--train_file`.")
        if self.task_name is not None:
            task = find_task(f"glue/{self.task_name}")
            if not any(files) and self.dataset_name is None:
                self.dataset_name, self.dataset_config_name = task.dataset, task.name
            return task
        if training:
            return task_of_rows(self.rows("train"))
        config = AutoConfig.from_pretrained(model.model_name_or_path, revision=model.model_revision)
        return task_of_rows(self.rows("validation" if self.validation_file else "test"), config)


def main() -> None:
    """Train, measure, predict."""
    parser = HfArgumentParser((ModelArguments, GlueArguments, TrainingArguments))
    models, data, arguments = parser.parse_args_into_dataclasses()
    set_seed(arguments.seed)
    task = data.task(models, arguments.do_train)
    model, tokenizer = models.load(
        AutoModelForSequenceClassification, arguments.seed, num_labels=task.num_labels, problem_type=task.problem_type
    )
    limit = min(data.max_seq_length, tokenizer.model_max_length)

    def rows(split: str) -> list[dict]:
        return data.rows(split, task.split_on_hub(split))

    trainer = classification_trainer(
        model,
        task,
        tokenizer,
        arguments,
        train=rows("train") if arguments.do_train else None,
        validation=rows("validation") if arguments.do_eval else None,
        max_length=limit,
        hub_metric=data.hub_metric,
    )

    def measure(split: str) -> dict[str, float]:
        return trainer.evaluate() if split == "validation" else predict_labels(trainer, task, rows(split), limit)

    known = {"dataset": f"GLUE {task.name.upper()}"} if task.dataset else {}
    trainer.add_callback(KeepCompactCard(trainer))
    run_stages(trainer, arguments, measure, tasks="text-classification", **known)


if __name__ == "__main__":
    main()
    leave_process_group()
