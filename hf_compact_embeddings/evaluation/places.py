"""Scores at some places only: the output layer never sees the others, whose scores would fill the memory."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import Tensor
from transformers import PreTrainedModel


@contextlib.contextmanager
def scored_at(model: PreTrainedModel, places: Tensor | None) -> Iterator[None]:
    """Let `model` return `logits` (n, V) of the n marked places (B, T) alone, or of one place if there are none."""
    layer = model.get_output_embeddings()
    if layer is None:
        yield
        return

    def choose(_: object, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden = arguments[0]
        return (hidden[:1, :1] if places is None else hidden[places], *arguments[1:])

    handle = layer.register_forward_pre_hook(choose)
    try:
        yield
    finally:
        handle.remove()
