"""Files of what a model predicts, under the names that Transformers' scripts give them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import cast

from transformers import PreTrainedTokenizerBase, Trainer

from ..evaluation.classification import ClassificationTask
from ..evaluation.data import Rows


def predict_labels(trainer: Trainer, task: ClassificationTask, rows: Rows, max_length: int) -> dict[str, float]:
    """Write `predict_results_<task>.txt`, a line for each row, and return the metrics where rows have labels."""
    encode = task.encode if task.has_labels(rows) else task.encode_texts
    tokenizer = cast(PreTrainedTokenizerBase, trainer.processing_class)
    found = trainer.predict(encode(rows, tokenizer, max_length), metric_key_prefix="eval")
    decisions = task.decide(task.in_order(found.predictions, trainer.model.config))
    if trainer.is_world_process_zero():
        lines = [f"{place}\t{task.in_words(decision)}" for place, decision in enumerate(decisions)]
        path = Path(str(trainer.args.output_dir)) / f"predict_results_{task.name}.txt"
        path.write_text("\n".join(["index\tprediction", *lines]) + "\n", encoding="utf-8")
    return found.metrics or {}


def write_answers(trainer: Trainer, answers: Mapping[str, str], stage: str) -> None:
    """Write the answers to each question's id as `<stage>_predictions.json`."""
    if trainer.is_world_process_zero():
        path = Path(str(trainer.args.output_dir)) / f"{stage}_predictions.json"
        path.write_text(json.dumps(answers, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
