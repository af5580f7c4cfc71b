"""Whether teacher, student and tokenizer belong together; what does not is told in one sentence."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..modeling.errors import CompactConfigError
from .losses import predicts


def require_same_tokens(
    tokenizer: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase | None, teacher: str
) -> None:
    """Raise if a teacher's tokenizer, where it has one, is another one."""
    if other is None or not hasattr(other, "get_vocab"):
        return
    mine, theirs = tokenizer.get_vocab(), other.get_vocab()
    if mine != theirs:
        differing = [token for token in mine if theirs.get(token) != mine[token]]
        raise CompactConfigError(
            f"`teacher` {teacher!r} has another tokenizer than `tokenizer`: {len(theirs):,} tokens against "
            f"{len(mine):,}" + (f", and {differing[0]!r} is not the same" if differing else "") + "."
        )


def require_match(
    compact: PreTrainedModel,
    teacher: PreTrainedModel | None,
    tokenizer: PreTrainedTokenizerBase,
    losses: Mapping[str, float],
) -> None:
    """Raise if teacher and student cannot be compared."""
    rows = compact.compact_embedding.num_embeddings
    if len(tokenizer) > rows:
        raise CompactConfigError(f"`tokenizer` has {len(tokenizer):,} tokens, but `compact` has {rows:,} rows.")
    if compact.dtype == torch.float16:
        # The squares of gradients, which the optimiser keeps, are too small for it: the loss grows without a word.
        raise CompactConfigError("`compact` is in float16, which cannot be trained: take float32 or bfloat16.")
    if teacher is None:
        return
    if teacher is compact:
        raise CompactConfigError("`teacher` is `compact` itself: give the original.")
    other = teacher.get_input_embeddings().num_embeddings
    if other != rows:
        raise CompactConfigError(
            f"`teacher` has {other:,} tokens, but `compact` has {rows:,}: they need the same tokenizer."
        )
    if type(teacher).base_model_prefix != type(compact).base_model_prefix and predicts(losses):
        raise CompactConfigError(
            f"`teacher` is a {type(teacher).__name__}, but `compact` a {type(compact).__name__}: their heads differ."
        )
    if "logits" in losses and teacher.get_output_embeddings() is None:
        raise CompactConfigError(f"`teacher` is a {type(teacher).__name__}, which has no output layer for `logits`.")
    widths = [model.config.get_text_config().hidden_size for model in (teacher, compact)]
    if widths[0] != widths[1]:
        raise CompactConfigError(f"`teacher` has hidden size {widths[0]}, but `compact` has {widths[1]}.")
    depths = [model.config.get_text_config().num_hidden_layers for model in (teacher, compact)]
    if "all_states" in losses and depths[0] != depths[1]:
        raise CompactConfigError(f"`teacher` has {depths[0]} layers, but `compact` has {depths[1]}: use `states`.")


@torch.no_grad()
def fingerprint(teacher: PreTrainedModel) -> str:
    """Return a few digits that another teacher does not have."""
    sums = [f"{name} {float(value.double().sum()):.6e}" for name, value in teacher.named_parameters()]
    return hashlib.sha256("\n".join(sums).encode()).hexdigest()[:16]
