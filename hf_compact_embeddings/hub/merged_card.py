"""A compact model's card and that of a training put together."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard

from ..modeling.modeling_compact import KEPT_CARD

_CARD = "README.md"
_TRAINERS_TAG = "generated_from_trainer"
_NOTE = "The figures above this section are those of the checkpoint before this fine-tuning."


def complete_card(folder: Path) -> None:
    """Put the two cards of a folder that plain Trainer has written to together in README.md, and leave only that."""
    kept, card = folder / KEPT_CARD, folder / _CARD
    if not kept.is_file():
        return
    before, text = kept.read_text(encoding="utf-8"), card.read_text(encoding="utf-8") if card.is_file() else ""
    is_trainers = _TRAINERS_TAG in (read_card(text).data.get("tags") or ())
    if is_trainers and read_card(before).text.strip() not in text:
        card.write_text(merged_card(before, text), encoding="utf-8")
    kept.unlink()


def merged_card(before: str, training: str) -> str:
    """Return a card with the metadata of both, and Trainer's text as a section of its own at the end."""
    card, addition = read_card(before), read_card(training)
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


def read_card(text: str) -> ModelCard:
    """Return a card, also one whose metadata are not as they should be."""
    return ModelCard(text, ignore_metadata_errors=True)


def _listed(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else list(value or ())
