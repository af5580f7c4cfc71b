"""Settings of calibration that were measured to be safe, by the kind of model and how small its table is."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

from transformers import PreTrainedModel

from .losses import choose_losses, predicts


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Settings of calibration.

    Attributes:
        losses: weights by name.
        max_length: of a text in tokens.
        batch: texts a step.
        learning_rate: of the layers.
        table_learning_rate: of the table.
        most_passes: over the texts.
        trains: as `calibrate` takes it.
    """

    losses: Mapping[str, float]
    max_length: int
    batch: int
    learning_rate: float
    table_learning_rate: float
    most_passes: int = 12
    trains: str = "all"

    @property
    def judged_by(self) -> Mapping[str, float]:
        """The losses that decide how far to go: of a language model how far its predictions are off, alone."""
        return {"logits": 1.0} if "logits" in self.losses else self.losses


# Up to this many times smaller than in float32, the learning rates of layers and table: those of
# `benchmarks/calibration/experiments`. What has lost little must move little.
_RATES = ((10.0, 2e-5, 0.002), (50.0, 1e-4, 0.005), (250.0, 1e-4, 0.01), (math.inf, 2e-4, 0.02))
_SENTENCE_LOSSES = {"all_states": 2.0, "sentence": 1.0, "relations": 1.0}


def recipe_for(compact: PreTrainedModel) -> Recipe:
    """Return the settings that were measured to be safe for a model of this kind at this rate."""
    structure = compact.compact_embedding
    ratio = 4 * structure.num_embeddings * structure.embedding_dim / structure.nbytes
    rate, table_rate = next((rate, table_rate) for most, rate, table_rate in _RATES if ratio <= most)
    losses = choose_losses(compact, True, None)
    if predicts(losses):
        return Recipe(losses, 128, 16, rate, table_rate)
    return Recipe(_SENTENCE_LOSSES, 64, 32, rate, table_rate)
