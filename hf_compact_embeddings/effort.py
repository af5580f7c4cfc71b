"""What the three efforts mean: the settings that save time, and what calibrating asks for."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, get_args

from .modeling.errors import CompactConfigError, config_error
from .modeling.options import StructureConfig

Effort = Literal["fast", "balanced", "best"]

DEFAULT_MINUTES = 10.0
# What methods have of these, "fast" sets where nothing else is asked for: errors weigh as they are, so that no text is
# read; trellises have 256 states instead of 4,096; and k-means ends early.
_CHEAP: Mapping[str, Any] = {"metric": "plain", "max_window_bits": 8, "iterations": 8}
_DECIDED_LATER = "auto"


def require_sense(effort: str, minutes: float | None, tokenizer: object, init: str | None) -> None:
    """Raise if an effort is unknown, or if what is given does not go with it.

    Args:
        effort: that is asked for.
        minutes: that it may take, if that is given.
        tokenizer: of the model, if there is one.
        init: how the table starts, as far as that is known.
    """
    if effort not in get_args(Effort):
        raise config_error("effort", effort, f"it must be {', '.join(map(repr, get_args(Effort)))}")
    if minutes is not None and effort != "best":
        raise config_error(
            "minutes", minutes, f"`effort` is {effort!r}, and only 'best' takes the time that it is given"
        )
    if minutes is not None and not (isinstance(minutes, int | float) and 0 < minutes < float("inf")):
        raise config_error("minutes", minutes, "it must be a number above 0")
    if effort == "best" and tokenizer is None:
        raise CompactConfigError("`tokenizer` is missing: `effort` is 'best', which calibrates on texts.")
    if effort == "best" and init == "random":
        raise config_error("effort", effort, "`init` is 'random': nothing is fitted, so there is nothing to calibrate")


def cheap_settings(effort: str) -> Mapping[str, Any] | None:
    """Return the settings that an effort sets where nothing else is asked for, if it does."""
    return _CHEAP if effort == "fast" else None


def of_fields(settings: Mapping[str, Any], options_class: type[StructureConfig]) -> dict[str, Any]:
    """Return those settings that a method has."""
    fields = {field.name for field in dataclasses.fields(options_class)}
    return {name: value for name, value in settings.items() if name in fields}


def with_effort(config: StructureConfig, effort: str) -> StructureConfig:
    """Return a configuration that was given whole: it stands, and an effort decides only what it leaves open."""
    settings = of_fields(cheap_settings(effort) or {}, type(config))
    left_open = {name: value for name, value in settings.items() if getattr(config, name) == _DECIDED_LATER}
    return dataclasses.replace(config, **left_open)
