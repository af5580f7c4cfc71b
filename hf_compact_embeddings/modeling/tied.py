"""Modules that stand where a table or an output layer was tied to the compact table, or has one of its own.

Also what compact modules show as `weight`: an outline of the table without values.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from .errors import UnsupportedArchitectureError


class _TiedModule(nn.Module):
    """Reaches the compact table through the model at call time, so that hooks and wrappers there act here too."""

    owner: PreTrainedModel

    def __init__(self, owner: PreTrainedModel) -> None:
        super().__init__()
        # Outside the module tree: the owner contains this module, and the table's tensors are not ours.
        object.__setattr__(self, "owner", owner)

    @property
    def table(self) -> nn.Module:
        """The compact table, or whatever a library has wrapped around it."""
        return self.owner.get_input_embeddings()

    @property
    def weight(self) -> Tensor:
        """Shape and dtype of the table, on the meta device, for code that asks."""
        return self.table.weight  # type: ignore[return-value]


class TiedEmbedding(_TiedModule):
    """An input table of an encoder or decoder that shares the compact table."""

    def __init__(self, owner: PreTrainedModel, scale: float = 1.0) -> None:
        """Look rows up in the owner's table and multiply them by `scale`."""
        super().__init__(owner)
        self.scale = scale

    def forward(self, input_ids: Tensor) -> Tensor:
        """Return rows (..., D) of ids (...)."""
        return self.table(input_ids, scale=self.scale)


class TableHead(nn.Module):
    """An output layer that scores hidden states against a compact table, with a bias of its own if the native one has.

    `table` is what it scores against.
    """

    bias: nn.Parameter | None
    table: Any
    weight: Any

    def _add_bias(self, native: nn.Linear) -> None:
        self.register_parameter("bias", None if native.bias is None else nn.Parameter(torch.empty_like(native.bias)))

    @property
    def in_features(self) -> int:
        """Width of the hidden states."""
        return self.weight.shape[1]

    @property
    def out_features(self) -> int:
        """Number of scores."""
        return self.weight.shape[0]

    @torch.no_grad()
    def resize_bias(self, size: int) -> None:
        """Grow or shrink the bias; new tokens start from the mean bias."""
        if self.bias is None or self.bias.numel() == size:
            return
        added = max(0, size - self.bias.numel())
        grown = torch.cat([self.bias[:size], self.bias.mean().expand(added)])
        self.bias = nn.Parameter(grown, requires_grad=self.bias.requires_grad)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return scores (..., V) of hidden states (..., D)."""
        scores = self.table(hidden, project=True)
        return scores if self.bias is None else scores + self.bias


class TiedHead(_TiedModule, TableHead):
    """An output layer that scores hidden states against the input table."""

    def __init__(self, owner: PreTrainedModel, native: nn.Linear) -> None:
        """Score against the owner's table, in the place of a native layer."""
        super().__init__(owner)
        self._add_bias(native)


class CompactHead(TableHead):
    """An output layer that is not tied: it holds the table that it scores against."""

    weight = _TiedModule.weight

    def __init__(self, table: nn.Module, native: nn.Linear) -> None:
        """Score against a table that nothing else reads, in the place of a native layer."""
        super().__init__()
        self.table = table
        self._add_bias(native)


def adopt_tied_modules(original: nn.Module, owner: nn.Module) -> None:
    """Let the copies of `original`'s tied modules that are inside `owner`, a copy of it, read `owner`'s table."""
    for module in owner.modules():
        if isinstance(module, _TiedModule) and module.owner is original:
            object.__setattr__(module, "owner", owner)


class TableOutline(Tensor):
    """A table without values. Code that asks what it is gets an answer; code that computes with it gets an error.

    What only fills it does nothing, as architectures do that start a table themselves (CLIP); a view is an outline too.
    """

    def __new__(cls, shape: tuple[int, ...], dtype: torch.dtype, requires_grad: bool) -> TableOutline:
        """Be on the meta device, and take no memory."""
        return Tensor._make_wrapper_subclass(
            cls, shape, dtype=dtype, device=torch.device("meta"), requires_grad=requires_grad
        )

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Refuse what reads values: a plain meta tensor beside real ones can give uninitialised results in silence."""
        outline = args[0] if args else None
        # Values from another tensor would be lost.
        others = [argument for argument in args[1:] if isinstance(argument, Tensor)]
        if isinstance(outline, TableOutline) and not others:
            if function._schema.name.endswith("_"):
                return outline
            if function.is_view:
                stand_in = torch.empty(outline.shape, dtype=outline.dtype, device="meta")
                seen = function(stand_in, *args[1:], **kwargs or {})
                return TableOutline(tuple(seen.shape), outline.dtype, False)
        raise UnsupportedArchitectureError(
            f"The model computes with the table's `weight` itself ({function}): looked for code that looks rows up or "
            "scores them by calling the layer. `compact_embedding.dense()` gives the values."
        )

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        """Show what there is."""
        return f"TableOutline({tuple(self.shape)}, dtype={self.dtype})"
