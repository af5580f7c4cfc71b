"""Inputs that a table reads beside the ids: the model's `forward` names them, and the table finds them here."""

from __future__ import annotations

import inspect
from contextvars import ContextVar
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

_Inputs = dict[str, Tensor]
# Of the call that runs now, in each thread its own.
_current: ContextVar[_Inputs | None] = ContextVar("extra_inputs", default=None)
# Tracing cannot set a context variable; it runs in one thread, and what it reads becomes an input of the graph.
_traced: list[_Inputs] = []


def extra_input(name: str) -> Tensor | None:
    """Return the input of this name that the running call of a model was given."""
    if torch.compiler.is_compiling():
        return _traced[-1].get(name) if _traced else None
    return (_current.get() or {}).get(name)


def take_extra_inputs(model: nn.Module, names: tuple[str, ...]) -> None:
    """Let a model's `forward` take further keyword arguments, for the table to read during the call.

    Trainer passes on what `inspect.signature(model.forward)` lists, so they are listed there.
    """
    native = type(model).forward

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        given = {name: kwargs.pop(name) for name in names if name in kwargs}
        given = {name: value for name, value in given.items() if value is not None}
        if not given:
            return native(self, *args, **kwargs)
        if torch.compiler.is_compiling():
            _traced.append(given)
            outputs = native(self, *args, **kwargs)
            _traced.pop()
            return outputs
        token = _current.set(given)
        try:
            return native(self, *args, **kwargs)
        finally:
            _current.reset(token)

    forward.__signature__ = _extended(inspect.signature(native), names)  # type: ignore[attr-defined]
    # A bound method: copies of the model get one that is bound to the copy.
    model.forward = MethodType(forward, model)


def _extended(signature: inspect.Signature, names: tuple[str, ...]) -> inspect.Signature:
    parameters = list(signature.parameters.values())
    place = len(parameters) - (parameters[-1].kind is inspect.Parameter.VAR_KEYWORD)
    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Tensor | None)
        for name in names
    ]
    return signature.replace(parameters=[*parameters[:place], *added, *parameters[place:]])
