"""Compress a model's table and save the compact model, ready for AutoModel."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers

from ..checkpoints import load_dense, load_tokenizer, require_free_folder, write_checkpoint
from ..compression import compress
from ..evaluation.report import inspect
from ..modeling.errors import CompactConfigError
from .outcome import Outcome


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("model", help="Hub id or folder of a dense model")
    parser.add_argument("--method", required=True, help="name of a method (see `hf-compact methods`)")
    parser.add_argument(
        "--set",
        dest="options",
        action="append",
        default=[],
        metavar="OPTION=VALUE",
        help="set a method's option",
    )
    parser.add_argument("--output", required=True, help="folder to write; must be absent or empty")
    parser.add_argument("--head", metavar="AUTOCLASS", help="Auto class to load with, for example AutoModelForMaskedLM")
    parser.add_argument("--texts", metavar="FILE", help="text file, a text a line, to count tokens in")
    parser.add_argument("--token-counts", metavar="FILE", help="JSON list with a count for each token id")
    parser.add_argument("--seed", type=int, default=0, help="of all random choices")
    parser.add_argument("--device", help="where to fit; by default a GPU where there is one")


def run(options: argparse.Namespace) -> Outcome:
    """Compress, save, and report."""
    require_free_folder(options.output)
    settings = dict(parse_setting(setting) for setting in options.options)
    counts = None if options.token_counts is None else read_counts(options.token_counts)
    dense = load_dense(options.model, None if options.head is None else auto_class(options.head))
    tokenizer = load_tokenizer(options.model)
    compact = compress(
        dense,
        options.method,
        tokenizer=tokenizer,
        token_counts=counts,
        texts=None if options.texts is None else TextFile(options.texts),
        seed=options.seed,
        device=options.device,
        **settings,
    )
    report = inspect(compact, against=dense)
    written = write_checkpoint(compact, options.output, tokenizer, options.model)
    return Outcome(report.to_dict() | {"output": str(written)}, f"{report}\n{'written to':<24}{written}")


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


def read_counts(path: str) -> torch.Tensor:
    """Read a JSON list of counts."""
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
