"""Measure a dense or compact sentence encoder on the STS benchmark, or train it for the cosines of sentence pairs.

    python examples/run_sts.py --model_name_or_path sentence-transformers/all-MiniLM-L6-v2 --compact_ratio 100 \
        --do_predict --output_dir sts-compact

Rows have the columns sentence1, sentence2 and score: 0 to 5, as in the benchmark's own files, or to `--highest_score`.
Without data it takes the benchmark from the Hub, whose scores are 0 to 1. Sentence vectors are mean-pooled;
`spearmanr` is from -1 to 1.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import AutoModel, HfArgumentParser, PreTrainedTokenizerBase, TrainingArguments, set_seed

from hf_compact_embeddings import KeepCompactCard
from hf_compact_embeddings.evaluation.sentences import sts_correlation
from hf_compact_embeddings.finetuning.data import number_in, require_columns
from hf_compact_embeddings.finetuning.trainer import MeanLossTrainer, leave_process_group
from hf_compact_embeddings.model_outputs import mean_pooled
from hf_compact_embeddings.modeling.errors import CompactConfigError
from hf_compact_embeddings.scripts import DataArguments, ModelArguments, run_stages

_COLUMNS = ("sentence1", "sentence2", "score")


@dataclasses.dataclass
class PairArguments(DataArguments):
    """The data, and the range of its scores."""

    highest_score: float = dataclasses.field(default=5.0, metadata={"help": "the score of pairs that mean the same"})


@dataclasses.dataclass
class PairCollator:
    """Tokenises pairs: all first sentences, then all second ones."""

    tokenizer: PreTrainedTokenizerBase
    max_length: int
    highest_score: float

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Return a batch of twice as many sentences as rows."""
        sentences = [row[column] for column in _COLUMNS[:2] for row in rows]
        batch = self.tokenizer(
            sentences, padding=True, truncation=True, max_length=self.max_length, return_tensors="pt"
        )
        scores = torch.tensor([float(row["score"]) / self.highest_score for row in rows])
        return {**batch, "labels": scores}


class CosineTrainer(MeanLossTrainer):
    """Trains cosines to be the scores."""

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Return the squared error of the cosines."""
        scores = inputs.pop("labels")
        outputs = model(**inputs)
        first, second = mean_pooled(outputs.last_hidden_state, inputs["attention_mask"]).chunk(2)
        loss = (torch.cosine_similarity(first, second, dim=-1) - scores).square().mean()
        return (loss, outputs) if return_outputs else loss


def require_range(rows: Sequence[Mapping[str, Any]], highest: float) -> None:
    """Raise if the scores cannot be from 0 to `highest`: cosines would be trained to be something else."""
    largest = max(number_in(row["score"], index, "score") for index, row in enumerate(rows))
    if not highest / 2 <= largest <= highest:
        raise CompactConfigError(f"The largest score is {largest}, but `--highest_score` is {highest}.")


def main() -> None:
    """Train, measure, predict."""
    parser = HfArgumentParser((ModelArguments, PairArguments, TrainingArguments))
    models, data, arguments = parser.parse_args_into_dataclasses()
    set_seed(arguments.seed)
    if data.train_file is None and data.validation_file is None and data.test_file is None and not data.dataset_name:
        data.dataset_name, data.highest_score = "sentence-transformers/stsb", 1.0
    # Rows are tokenised by the collator.
    arguments.remove_unused_columns = False
    model, tokenizer = models.load(AutoModel, arguments.seed)
    train = data.rows("train") if arguments.do_train else None
    if train is not None:
        require_columns(train, _COLUMNS)
        require_range(train, data.highest_score)
    trainer = CosineTrainer(
        model=model,
        args=arguments,
        train_dataset=train,
        data_collator=PairCollator(tokenizer, data.max_seq_length, data.highest_score),
        processing_class=tokenizer,
    )

    def measure(split: str) -> dict[str, float]:
        encoder = trainer.accelerator.unwrap_model(model)
        return {"spearmanr": sts_correlation(encoder, tokenizer, data.rows(split))}

    trainer.add_callback(KeepCompactCard(trainer))
    run_stages(trainer, arguments, measure, tasks="sentence-similarity")


if __name__ == "__main__":
    main()
    leave_process_group()
