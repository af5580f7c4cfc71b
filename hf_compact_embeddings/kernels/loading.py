"""`from_pretrained(…, compact_runtime="int8")`: a model whose rows are decoded as soon as it is loaded."""

from __future__ import annotations

import functools
from typing import Any

from ..modeling.modeling_compact import CompactModelMixin
from .materialized import materialize, require_runtime


def let_models_load_decoded() -> None:
    """Have `from_pretrained` of all compact models, and so of the Auto classes, take `compact_runtime`.

    It is no part of what travels in checkpoints: those are read by their codes where this package is missing.
    """
    load: Any = CompactModelMixin.from_pretrained.__func__  # type: ignore[attr-defined]

    @functools.wraps(load)
    def from_pretrained(cls: type, *args: Any, compact_runtime: str | None = None, **kwargs: Any) -> Any:
        require_runtime(compact_runtime, "compact_runtime")
        loaded = load(cls, *args, **kwargs)
        if compact_runtime is not None:
            # With `output_loading_info` a pair.
            materialize(loaded[0] if isinstance(loaded, tuple) else loaded, compact_runtime)
        return loaded

    CompactModelMixin.from_pretrained = classmethod(from_pretrained)  # type: ignore[method-assign, assignment]
