"""The card of a compact model that is fine-tuned with Trainer, which knows only its own part of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..modeling.modeling_compact import CARD_TAG, KEPT_CARD
from .merged_card import merged_card, read_card

_CARD = "README.md"


class KeepCompactCard(TrainerCallback):
    """Puts what Trainer says about a fine-tuning under the compact model's card, instead of in its place.

    ``trainer.add_callback(KeepCompactCard(trainer))``: the card is written when training ends, when
    `trainer.create_model_card()` is called, and before `trainer.push_to_hub()` sends it. A second card of the same
    training replaces the first. Of this one trainer, the method `create_model_card` is replaced: nothing that Trainer
    tells its callbacks comes between its writing a card and its sending it. A model that is not compact gets Trainer's
    own card.
    """

    def __init__(self, trainer: Trainer) -> None:
        """Note the card that is there before the training.

        Args:
            trainer: whose callback this is.
        """
        self.trainer = trainer
        self.before = _card_before(trainer)
        if self.before is not None:
            self._native = trainer.create_model_card
            trainer.create_model_card = self.create_model_card

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Let Trainer write its card, and put the two together; for what it takes see `Trainer.create_model_card`."""
        self._native(*args, **kwargs)
        if self.before is not None and self.trainer.is_world_process_zero():
            folder = Path(str(self.trainer.args.output_dir))
            card = merged_card(self.before, (folder / _CARD).read_text(encoding="utf-8"))
            for name in (_CARD, KEPT_CARD):
                (folder / name).write_text(card, encoding="utf-8")
            # What is saved from now on, and trained further, has this card.
            _unwrapped(self.trainer)._compact_card = card

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Write the card, so that none that knows nothing of the training stands beside what was trained."""
        if self.before is not None:
            self.trainer.create_model_card()


def _unwrapped(trainer: Trainer) -> Any:
    return trainer.accelerator.unwrap_model(trainer.model)


def _card_before(trainer: Trainer) -> str | None:
    """Return the compact card of a trainer's model: that which it was loaded with, else that of the output folder."""
    model = _unwrapped(trainer)
    # A class that was loaded as remote code is none of the package's; adapters have cards of their own.
    if not isinstance(model, PreTrainedModel) or not hasattr(model, "_compact_card"):
        return None
    if model._compact_card is not None:
        return model._compact_card
    folder = Path(str(trainer.args.output_dir))
    found = (path.read_text(encoding="utf-8") for path in (folder / KEPT_CARD, folder / _CARD) if path.is_file())
    return next((text for text in found if CARD_TAG in (read_card(text).data.get("tags") or ())), None)
