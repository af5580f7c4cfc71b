"""Scores of a compact head in training that are made when somebody reads them; a cross-entropy needs tiles of them.

A training step with labels asks a head for scores (tokens, V) only to take their cross-entropy. So a head that trains
returns scores that are not there yet: `cross_entropy` of them goes over some rows of the table at a time, and leaves
out tokens without a label. Anything else that touches them makes them, with their gradient, as if they had been there.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_map
from transformers.utils import logging

from ..modeling.codes import is_traced
from ..modeling.structure import CompactEmbedding
from ..modeling.tied import TableHead
from .score_tiles import Predictor, log_probabilities

logger = logging.get_logger(__name__)

# Fewer scores are made at once: 2^24 float32 numbers are 64 MB.
_LEAST_SCORES = 1 << 24


class LazyScores(Tensor):
    """Scores (..., V) of hidden states (..., D), which a head has not made yet."""

    states: Tensor
    head: TableHead
    made: list[Tensor]
    versions: list[int]

    def __new__(cls, states: Tensor, head: TableHead, dtype: torch.dtype) -> LazyScores:
        """Look like the scores, and take no memory."""
        shape = (*states.shape[:-1], head.out_features)
        found = Tensor._make_wrapper_subclass(cls, shape, dtype=dtype, device=states.device)
        found.states, found.head, found.made = states, head, []
        found.versions = _versions(head)
        return found

    def scores(self) -> Tensor:
        """Make the scores, once, with their gradient."""
        if not self.made:
            if self.versions != _versions(self.head):
                logger.warning_once(
                    "Scores of a compact head are read after its table has changed: they are those of the new table. "
                    "Read `outputs.logits` before the optimiser's step."
                )
            with torch.enable_grad():
                self.made.append(_forward(self.head, self.states).to(self.dtype))
        return self.made[0]

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Do what needs no scores without them, and all else with them."""
        kwargs = kwargs or {}
        if function in _OUTLINES:
            with torch._C.DisableTorchFunctionSubclass():
                return function(*args, **kwargs)
        lazily = _LAZILY.get(function)
        if lazily is not None and args and isinstance(args[0], LazyScores) and not args[0].made:
            found = lazily(*args, **kwargs)
            if found is not None:
                return found
        args, kwargs = tree_map(_made, (args, kwargs))
        return function(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Give numbers without a gradient to what goes past all of Python: a `backward` from there raises."""
        args, kwargs = tree_map(_numbers, (args, kwargs or {}))
        return function(*args, **kwargs)


def _numbers(part: Any) -> Any:
    return part.scores().detach() if isinstance(part, LazyScores) else part


def _made(part: Any) -> Any:
    return part.scores() if isinstance(part, LazyScores) else part


def _versions(head: TableHead) -> list[int]:
    tensors = [*head.table.parameters(), *head.parameters(recurse=False)]
    return [0 if tensor.is_inference() else tensor._version for tensor in tensors]


# What is known without the scores.
_OUTLINES = {
    getattr(Tensor, name).__get__ for name in ("shape", "dtype", "device", "ndim", "layout", "is_cuda", "is_sparse")
} | {Tensor.size, Tensor.dim, Tensor.numel, Tensor.is_floating_point, Tensor.__len__}


def _cast(scores: LazyScores) -> LazyScores:
    return LazyScores(scores.states, scores.head, torch.float32)


def _same(scores: LazyScores, *args: Any, **kwargs: Any) -> LazyScores | None:
    return None if args or kwargs else scores


def _reshaped(scores: LazyScores, *shape: Any) -> LazyScores | None:
    """Return scores in another shape, if a row stays a row."""
    wanted = list(shape[0]) if len(shape) == 1 and not isinstance(shape[0], int) else list(shape)
    if not all(isinstance(size, int) for size in wanted) or not wanted or wanted.count(-1) > 1:
        return None
    rest = math.prod(size for size in wanted if size != -1)
    if -1 in wanted and rest:
        wanted[wanted.index(-1)] = scores.numel() // rest
    if wanted[-1] != scores.shape[-1] or math.prod(wanted) != scores.numel():
        return None
    return LazyScores(scores.states.reshape(*wanted[:-1], scores.states.shape[-1]), scores.head, scores.dtype)


def _chosen(scores: LazyScores, index: Any) -> LazyScores | None:
    """Return some rows of scores, if they are whole."""
    parts = index if isinstance(index, tuple) else (index,)
    whole = isinstance(parts[-1], slice) and parts[-1] == slice(None)
    plain = all(isinstance(part, int | slice) or part is Ellipsis for part in parts)
    taken = sum(part is not Ellipsis for part in parts)
    # Dimensions that are not named stay whole, unless what is named is counted from the last one.
    if not plain or not (whole if taken == scores.ndim or Ellipsis in parts else taken < scores.ndim):
        return None
    return LazyScores(scores.states[index], scores.head, scores.dtype)


def _cross_entropy(
    scores: LazyScores,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor | None:
    """Return the cross-entropy of scores (n, V) and labels (n,), by tiles; None where it is of another kind."""
    other = weight is not None or size_average is not None or reduce is not None or label_smoothing
    if other or scores.ndim != 2 or type(target) is not Tensor or target.shape != scores.shape[:1]:
        return None
    if target.is_floating_point() or reduction not in ("mean", "sum", "none"):
        return None
    counted = target != ignore_index
    labels = target[counted]
    if labels.numel() and not 0 <= int(labels.amin()) <= int(labels.amax()) < scores.shape[-1]:
        # The ordinary way has an error of its own for it.
        return None
    predictor = Predictor(scores.states[counted], scores.head)
    losses = -log_probabilities(predictor, labels.unsqueeze(1)).squeeze(1)
    if reduction == "none":
        return losses.new_zeros(target.shape).masked_scatter(counted, losses)
    return losses.sum() if reduction == "sum" else losses.sum() / labels.numel()


_LAZILY: dict[Any, Callable[..., Any]] = {
    Tensor.float: _cast,
    Tensor.contiguous: _same,
    Tensor.view: _reshaped,
    Tensor.reshape: _reshaped,
    Tensor.__getitem__: _chosen,
    F.cross_entropy: _cross_entropy,
}

_forward = TableHead.forward


def _lazy_forward(self: TableHead, hidden: Tensor) -> Tensor:
    """Score hidden states (..., D): later, where a loss is likely all that wants to know."""
    if not _may_wait(self, hidden):
        return _forward(self, hidden)
    dtype = hidden.dtype if self.bias is None else torch.promote_types(hidden.dtype, self.bias.dtype)
    return LazyScores(hidden, self, dtype)


def _may_wait(head: TableHead, hidden: Tensor) -> bool:
    """Whether a head is training on many tokens, and all is plain tensors."""
    if not (head.training and torch.is_grad_enabled()) or is_traced() or type(hidden) is not Tensor:
        return False
    table = head.table
    # What a library has wrapped around the table, or put into its calls, may want to see them.
    if not isinstance(table, CompactEmbedding) or "forward" in vars(table) or getattr(table, "_is_replica", False):
        return False
    if hidden.shape[:-1].numel() * table.num_embeddings < _LEAST_SCORES:
        return False
    try:
        # What stands for many tensors, as under vmap, has no memory of its own.
        hidden.data_ptr()
    except RuntimeError:
        return False
    trained = any(parameter.requires_grad for parameter in (*table.parameters(), *head.parameters(recurse=False)))
    return trained or hidden.requires_grad


def let_heads_wait() -> None:
    """Have heads of all compact models, but of those that bring their own code, give scores that wait."""
    TableHead.forward = _lazy_forward  # type: ignore[method-assign]
