"""The card of a compact model that is fine-tuned with Trainer, which knows only its own part of it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..modeling.modeling_compact import CARD_TAG, KEPT_CARD

_CARD = "README.md"
_TRAINERS_TAG = "generated_from_trainer"
_NOTE = "The figures above this section are those of the checkpoint before this fine-tuning."


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
    return next((text for text in found if CARD_TAG in (_read(text).data.get("tags") or ())), None)


def complete_card(folder: Path) -> None:
    """Put the two cards of a folder that plain Trainer has written to together in README.md, and leave only that."""
    kept, card = folder / KEPT_CARD, folder / _CARD
    if not kept.is_file():
        return
    before, text = kept.read_text(encoding="utf-8"), card.read_text(encoding="utf-8") if card.is_file() else ""
    is_trainers = _TRAINERS_TAG in (_read(text).data.get("tags") or ())
    if is_trainers and _read(before).text.strip() not in text:
        card.write_text(merged_card(before, text), encoding="utf-8")
    kept.unlink()


def merged_card(before: str, training: str) -> str:
    """Return a card with the metadata of both, and Trainer's text as a section of its own at the end."""
    card, addition = _read(before), _read(training)
    for name in ("tags", "datasets", "metrics"):
        both = [*_listed(card.data.get(name)), *_listed(addition.data.get(name))]
        if both:
            setattr(card.data, name, list(dict.fromkeys(both)))
    results = [*(card.data.get("eval_results") or ()), *(addition.data.get("eval_results") or ())]
    if results:
        name = card.data.get("model_name") or addition.data.get("model_name")
        card.data.eval_results, card.data.model_name = results, name  # type: ignore[attr-defined]
    for name, value in addition.data.to_dict().items():
        if name != "model-index" and card.data.get(name) is None:
            setattr(card.data, name, value)
    section = re.sub(r"^(#+ )", r"#\1", addition.text.strip(), flags=re.MULTILINE)
    section = re.sub(r"^## (.*)$", rf"## Fine-tuning: \1\n\n{_NOTE}", section, count=1, flags=re.MULTILINE)
    card.text = f"{card.text.rstrip()}\n\n{section}\n"
    return str(card)


def _read(text: str) -> ModelCard:
    return ModelCard(text, ignore_metadata_errors=True)


def _listed(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else list(value or ())
