"""What models give: which tokens a head predicts, scores at some positions only, and one vector for a sequence."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

from torch import Tensor
from transformers import PreTrainedModel

from .modeling.transformers_internals import native_class
from .transformers_internals import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_MASKED_LM_MAPPING_NAMES


def is_masked_lm(model: PreTrainedModel) -> bool:
    """Tell whether a model, compact or dense, predicts masked tokens."""
    return _has_head(model, MODEL_FOR_MASKED_LM_MAPPING_NAMES)


def is_causal_lm(model: PreTrainedModel) -> bool:
    """Tell whether a model, compact or dense, predicts each next token."""
    return _has_head(model, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def _has_head(model: PreTrainedModel, names: Mapping[str, object]) -> bool:
    # Some encoder-decoders, as BART, are listed too; their decoders predict from another text than they read.
    return not model.config.is_encoder_decoder and native_class(type(model)).__name__ in names.values()


@contextlib.contextmanager
def scored_at(model: PreTrainedModel, positions: Tensor | None) -> Iterator[None]:
    """Let a model return `logits` (n, V) of the n marked positions (B, T) alone, or of one if there are none.

    The output layer never sees the other positions, whose scores would fill the memory.
    """
    layer = model.get_output_embeddings()
    if layer is None:
        yield
        return

    def choose(_: object, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden = arguments[0]
        return (hidden[:1, :1] if positions is None else hidden[positions], *arguments[1:])

    handle = layer.register_forward_pre_hook(choose)
    try:
        yield
    finally:
        handle.remove()


def mean_pooled(states: Tensor, mask: Tensor) -> Tensor:
    """Return the mean (B, H), float32, of the hidden states (B, T, H) of each sequence's tokens.

    Args:
        states: hidden states.
        mask: 1 for tokens, 0 for padding (B, T).
    """
    weights = mask.unsqueeze(-1).float()
    # A sequence without a token gets zeros.
    return (states.float() * weights).sum(1) / weights.sum(1).clamp(min=1.0)
