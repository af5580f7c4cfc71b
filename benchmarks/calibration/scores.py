"""What an experiment measures its models on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import AutoModel, AutoModelForMaskedLM, PreTrainedModel, PreTrainedTokenizerBase

from ..common.library import perplexity, sts_score
from ..common.record import read_rows
from ..common.texts import texts_of
from .experiment import Experiment


class Scores:
    """The score of a model on each part of the data; on the validation part, if there is one, checkpoints are chosen.

    A masked LM has no such part: nothing is chosen on the text that gives the figures.
    """

    auto_class: Any

    def __init__(self, experiment: Experiment, data: Path, tokenizer: PreTrainedTokenizerBase) -> None:
        """Read the data."""
        self.measure, self.tokenizer = experiment.measure, tokenizer
        path = data / experiment.measured_on
        self.parts: dict[str, list[Any]]
        if self.measure == "sts":
            self.auto_class = AutoModel
            self.parts = {part: read_rows(path / f"{part}.jsonl") for part in ("validation", "test")}
        else:
            self.auto_class = AutoModelForMaskedLM
            self.parts = {"held_out": list(texts_of(path, tokenizer))}

    @property
    def can_choose(self) -> bool:
        """Whether there is a part to choose checkpoints on."""
        return "validation" in self.parts

    def score(self, model: PreTrainedModel, part: str = "validation") -> float:
        """Return the score on a part: 100 times a rank correlation, or a perplexity."""
        measured = sts_score if self.measure == "sts" else perplexity
        return round(measured(model, self.tokenizer, self.parts[part]), 2)

    def table(self, models: Mapping[str, PreTrainedModel]) -> dict[str, dict[str, float]]:
        """Return the score of each model on each part."""
        return {
            f"{self.measure}_{part}": {name: self.score(model, part) for name, model in models.items()}
            for part in self.parts
        }
