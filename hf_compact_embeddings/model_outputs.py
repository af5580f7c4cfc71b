"""What models give: which tokens a head predicts, scores at some positions or what makes them, and sentence vectors."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
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


@contextlib.contextmanager
def unscored_at(model: PreTrainedModel, positions: Tensor) -> Iterator[list[Tensor]]:
    """Collect what enters an output layer at the marked positions (B, T): states (n, D), which it does not score.

    Its `logits` are zeros for one token.
    """
    layer: Any = output_layer(model)
    entering: list[Tensor] = []
    own = layer.__dict__.get("forward")

    def keep(hidden: Tensor, *_: object, **__: object) -> Tensor:
        entering.append(hidden[positions])
        scores = hidden.new_zeros(1, 1, layer.weight.shape[0])
        # Data-parallel training takes what its model's outputs do not come from for unused.
        return scores + 0.0 * _touch(hidden, layer) if torch.is_grad_enabled() else scores

    # Not a hook: the layer would score something all the same, and a compact one decodes all rows for it.
    layer.forward = keep
    try:
        yield entering
    finally:
        if own is None:
            del layer.forward
        else:
            layer.forward = own


def _touch(hidden: Tensor, layer: nn.Module) -> Tensor:
    """Return a number that comes from states, and from all parameters that a layer scores them with."""
    modules = [layer, table] if isinstance(table := getattr(layer, "table", None), nn.Module) else [layer]
    values = [hidden, *(value for module in modules for value in module.parameters() if value.requires_grad)]
    return torch.stack([value.flatten()[:1].sum().to(hidden) for value in values]).sum()


def output_layer(model: PreTrainedModel) -> nn.Module:
    """Return the layer of a language model that scores tokens."""
    layer = model.get_output_embeddings()
    assert isinstance(layer, nn.Module), type(model).__name__
    return layer


@torch.no_grad()
def gives_scores_as_they_are(model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> bool:
    """Tell whether a model's `logits` are what its output layer gives: some scale or cap them afterwards.

    Args:
        model: with an output layer.
        inputs: of its `forward`, to try it with.
    """
    scores: list[Tensor] = []
    handle = output_layer(model).register_forward_hook(lambda _, __, output: scores.append(output))
    try:
        with scored_at(model, None):
            logits = model(**{name: value[:1] for name, value in inputs.items()}).logits
    finally:
        handle.remove()
    return len(scores) == 1 and scores[0].shape == logits.shape and torch.equal(scores[0].float(), logits.float())


def mean_pooled(states: Tensor, mask: Tensor) -> Tensor:
    """Return the mean (B, H), float32, of the hidden states (B, T, H) of each sequence's tokens.

    Args:
        states: hidden states.
        mask: 1 for tokens, 0 for padding (B, T).
    """
    weights = mask.unsqueeze(-1).float()
    # A sequence without a token gets zeros.
    return (states.float() * weights).sum(1) / weights.sum(1).clamp(min=1.0)
