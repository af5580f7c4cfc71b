"""List the methods and their options."""

from __future__ import annotations

import argparse
import dataclasses
import inspect

from ..fitting import registered_methods
from ..modeling.options import StructureConfig
from .outcome import Outcome


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments: there are none."""


def run(options: argparse.Namespace) -> Outcome:
    """List every method of the registry."""
    found = {config_class.method: _describe(config_class) for config_class in _options_classes()}
    blocks = []
    for config_class in _options_classes():
        lines = [
            f"{config_class.method}  ({config_class.__name__})",
            *_indented(inspect.getdoc(config_class) or ""),
        ]
        defaults = [f"{field.name}={field.default!r}" for field in dataclasses.fields(config_class)]
        blocks.append("\n".join([*lines, "    Defaults: " + ", ".join(defaults)]))
    return Outcome({"methods": found}, "\n\n".join(blocks))


def _options_classes() -> list[type[StructureConfig]]:
    return [method.structure.options_class for method in registered_methods()]


def _describe(config_class: type[StructureConfig]) -> dict[str, object]:
    return {
        "config": config_class.__name__,
        "description": (inspect.getdoc(config_class) or "").split("\n")[0],
        "options": {field.name: field.default for field in dataclasses.fields(config_class)},
    }


def _indented(text: str) -> list[str]:
    return [f"    {line}".rstrip() for line in text.splitlines()]
