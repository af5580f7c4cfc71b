"""Settings of calibration that were measured to be safe, by the kind of model and how small its table is."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

from transformers import PreTrainedModel

from ..model_outputs import is_causal_lm
from .losses import choose_losses, predicts


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Settings of calibration.

    Attributes:
        losses: weights by name.
        max_length: of a text in tokens.
        batch: texts a step.
        learning_rate: of the layers.
        table_learning_rate: of the tables.
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
# Of causal models the table and all norms train: in equal time that brings more than all layers do. Norms bear a rate
# that layers would not, and in the few steps that there is time for, it must be high. Those from 10 times on were
# measured (`benchmarks/frontier/tied_calibrated.py`); that below is lower, as for layers, and a guess.
_CAUSAL_RATES = ((10.0, 3e-4, 0.003), (20.0, 6e-4, 0.006), (35.0, 1e-3, 0.01), (math.inf, 1.5e-3, 0.015))
_CAUSAL_WINDOW, _CAUSAL_BATCH = 256, 4


def recipe_for(compact: PreTrainedModel) -> Recipe:
    """Return the settings that were measured to be safe for a model of this kind at this rate."""
    tables = compact.compact_tables.values()
    weights = sum(table.num_embeddings * table.embedding_dim for table in tables)
    ratio = 4 * weights / sum(table.nbytes for table in tables)
    losses = choose_losses(compact, True, None)
    if is_causal_lm(compact):
        rate, table_rate = _rates(_CAUSAL_RATES, ratio)
        return Recipe(losses, _CAUSAL_WINDOW, _CAUSAL_BATCH, rate, table_rate, trains="tables+norms")
    rate, table_rate = _rates(_RATES, ratio)
    if predicts(losses):
        return Recipe(losses, 128, 16, rate, table_rate)
    return Recipe(losses, 64, 32, rate, table_rate)


def _rates(table: tuple[tuple[float, float, float], ...], ratio: float) -> tuple[float, float]:
    """Return the two learning rates for a table that is so many times smaller."""
    return next((rate, table_rate) for most, rate, table_rate in table if ratio <= most)
