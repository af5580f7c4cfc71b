"""A Trainer for losses that are means."""

from __future__ import annotations

from typing import Any

from transformers import Trainer


class MeanLossTrainer(Trainer):
    """Trains models whose loss is the mean over a batch, and gives the same steps on any number of processes.

    Trainer asks only whether `forward` takes further arguments to tell whether the loss is normalised by
    `num_items_in_batch`. Heads that classify or score take them, and ignore that one: their loss, and their gradient,
    would be multiplied by the number of processes.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        """Take what Trainer takes."""
        super().__init__(*arguments, **options)
        self.model_accepts_loss_kwargs = False
