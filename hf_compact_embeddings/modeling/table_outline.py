"""What a compact module shows as `weight`: shape and dtype of the table that it stands for, and no values."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .errors import UnsupportedArchitectureError


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
        others = [argument for argument in args[1:] if isinstance(argument, TableOutline)]
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
