"""Fine-tune a dense or compact model on SQuAD 1.1, or on files in its layout.

    python examples/run_qa.py --model_name_or_path google-bert/bert-base-uncased --compact_ratio 100 \
        --do_train --do_eval --output_dir squad-compact

Rows have the columns id, context, question and answers ({"text": […], "answer_start": […]}).
"""

from __future__ import annotations

import dataclasses

from transformers import AutoModelForQuestionAnswering, HfArgumentParser, TrainingArguments, set_seed

from hf_compact_embeddings import KeepCompactCard
from hf_compact_embeddings.finetuning.question_answering import QuestionAnsweringTask
from hf_compact_embeddings.finetuning.trainer import answer_trainer, leave_process_group, predicted_answers
from hf_compact_embeddings.scripts import DataArguments, ModelArguments, run_stages, write_answers


@dataclasses.dataclass
class AnswerArguments(DataArguments):
    """The data, and how contexts are cut into windows."""

    max_seq_length: int = dataclasses.field(default=384, metadata={"help": "longest question and window in tokens"})
    doc_stride: int = dataclasses.field(default=128, metadata={"help": "tokens that two windows share"})
    max_answer_length: int = dataclasses.field(default=30, metadata={"help": "longest answer in tokens"})


def main() -> None:
    """Train, measure, predict."""
    parser = HfArgumentParser((ModelArguments, AnswerArguments, TrainingArguments))
    models, data, arguments = parser.parse_args_into_dataclasses()
    set_seed(arguments.seed)
    if data.train_file is None and data.validation_file is None and data.dataset_name is None:
        data.dataset_name = "rajpurkar/squad"
    model, tokenizer = models.load(AutoModelForQuestionAnswering, arguments.seed)
    limit = min(data.max_seq_length, tokenizer.model_max_length)
    task = QuestionAnsweringTask(tokenizer, limit, min(data.doc_stride, limit // 3), data.max_answer_length)
    trainer = answer_trainer(model, task, arguments, data.rows("train") if arguments.do_train else None)

    def measure(split: str) -> dict[str, float]:
        rows = data.rows(split)
        answers = predicted_answers(trainer, task, rows)
        write_answers(trainer, answers, "eval" if split == "validation" else "predict")
        return task.measure(rows, answers) if "answers" in rows[0] else {"samples": len(rows)}

    trainer.add_callback(KeepCompactCard(trainer))
    run_stages(trainer, arguments, measure, tasks="question-answering", dataset="SQuAD")


if __name__ == "__main__":
    main()
    leave_process_group()
