"""Fine-tuning adds to a compact checkpoint's card: Trainer alone would write its own in the card's place."""

from __future__ import annotations

import functools
import re
import sys
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard
from transformers import PreTrainedModel

from .transformers_internals import cached_file_or_none, commit_of

CARD_TAG = "compact-embeddings"
_CARD = "README.md"
_KEEPS_CARD = "_keeps_compact_card"
_NOTE = "The figures above this section are those of the checkpoint before this fine-tuning."


def keep_card_when_training() -> None:
    """Let `Trainer.create_model_card` add to the card of a compact model; all other models are left alone."""
    trainer_class = getattr(sys.modules.get("transformers.trainer"), "Trainer", None)
    if trainer_class is None or hasattr(trainer_class.create_model_card, _KEEPS_CARD):
        return
    native = trainer_class.create_model_card

    @functools.wraps(native)
    def create_model_card(trainer: Any, *args: Any, **kwargs: Any) -> None:
        path = Path(trainer.args.output_dir) / _CARD
        # Found once for each trainer: a second card of the same training replaces the first.
        if not hasattr(trainer, "_compact_card"):
            trainer._compact_card = _card_before(trainer.model, path)
        native(trainer, *args, **kwargs)
        if trainer._compact_card is not None and trainer.is_world_process_zero():
            path.write_text(merged_card(trainer._compact_card, path.read_text(encoding="utf-8")), encoding="utf-8")

    setattr(create_model_card, _KEEPS_CARD, True)
    trainer_class.create_model_card = create_model_card


def _card_before(model: Any, path: Path) -> str | None:
    """Return the compact checkpoint's card: from the output folder, else from where the model was loaded."""
    config = getattr(model, "config", None)
    if not isinstance(model, PreTrainedModel) or getattr(config, "compact_embeddings", None) is None:
        return None
    found = [path] if path.is_file() else []
    if source := model.config.name_or_path:
        card = cached_file_or_none(source, _CARD, revision=commit_of(config))
        found += [] if card is None else [Path(card)]
    texts = (file.read_text(encoding="utf-8") for file in found)
    return next((text for text in texts if CARD_TAG in (_read(text).data.get("tags") or ())), None)


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
