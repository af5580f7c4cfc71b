"""Arguments that several verbs share, and how they are read."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
import transformers

from ..modeling.errors import CompactConfigError


def add_budget_arguments(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """Declare the three ways to give a budget."""
    group = parser.add_mutually_exclusive_group(required=required)
    group.add_argument("--ratio", type=float, help="make the table at least this many times smaller")
    group.add_argument("--max-size", metavar="SIZE", help="make it at most this large, for example 1MB")
    group.add_argument("--bits-per-weight", type=float, help="spend at most this many bits on a value")


def budget_options(options: argparse.Namespace) -> dict[str, Any]:
    """Return the budget as `plan()` takes it."""
    given = {"ratio": options.ratio, "max_bytes": options.max_size, "bits_per_weight": options.bits_per_weight}
    return {name: value for name, value in given.items() if value is not None}


def add_token_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the two ways to say how often tokens occur."""
    parser.add_argument("--texts", metavar="FILE", help="text file, a text a line, to count tokens in")
    parser.add_argument(
        "--token-counts",
        metavar="FILE",
        help="JSON list with a count for each token id, or `tokenizer`: as far as that itself tells",
    )


def parse_setting(setting: str) -> tuple[str, Any]:
    """Read OPTION=VALUE; numbers, true, false and null as in JSON, anything else as a string."""
    name, separator, value = setting.partition("=")
    if not separator or not name:
        raise CompactConfigError(f"`--set` is {setting!r}, but it must be OPTION=VALUE.")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


def auto_class(name: str) -> Any:
    """Return the Auto class of a name."""
    if not name.startswith("AutoModel") or not hasattr(transformers, name):
        raise CompactConfigError(f"`--head` is {name!r}, but it must be an Auto class, as AutoModelForMaskedLM.")
    return getattr(transformers, name)


def read_counts(path: str) -> torch.Tensor | Literal["tokenizer"]:
    """Read a JSON list of counts; or pass the word on that asks for the tokenizer's own."""
    if path == "tokenizer":
        return "tokenizer"
    try:
        counts = json.loads(Path(path).read_text(encoding="utf-8"))
        return torch.tensor(counts, dtype=torch.float64)
    except (json.JSONDecodeError, UnicodeDecodeError, TypeError, ValueError) as error:
        raise CompactConfigError(f"`--token-counts` {path!r} is no JSON list of numbers: {error}.") from error


class TextFile:
    """The lines of a text file that are not empty, read anew at each pass."""

    def __init__(self, path: str) -> None:
        """Check that the file can be read."""
        self.path = Path(path)
        if not self.path.is_file():
            raise CompactConfigError(f"`--texts` {path!r} is no file.")

    def __iter__(self) -> Iterator[str]:
        """Read the file once."""
        with self.path.open(encoding="utf-8", errors="replace") as file:
            for line in file:
                if line := line.strip():
                    yield line
