"""Arguments that several verbs share, and how they are read."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
import transformers

from ..evidence import Texts, read_texts
from ..kernels import RUNTIMES
from ..modeling.errors import CompactConfigError

# Where counts can come from beside a file.
_COUNTS_FROM = ("words", "tokenizer", "uniform")


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
    """Declare the ways to say how often tokens occur."""
    add_text_arguments(parser, "texts to count tokens in, and to read sensitivities from")
    parser.add_argument(
        "--token-counts",
        metavar="FILE",
        help="JSON list with a count for each token id; or `words`, the frequencies of words in a language; "
        "`tokenizer`, as far as that itself tells; `uniform`, all alike. By default from --texts, else from words",
    )
    add_language_argument(parser)


def add_language_argument(parser: argparse.ArgumentParser) -> None:
    """Declare whose words tell how often tokens occur."""
    parser.add_argument(
        "--language",
        dest="languages",
        action="append",
        metavar="CODE",
        help="language whose words count, as `de`; may be given several times; by default all of the vocabulary",
    )


def add_tables_argument(parser: argparse.ArgumentParser) -> None:
    """Declare which tables are meant."""
    parser.add_argument(
        "--tables",
        default="input",
        metavar="TABLES",
        help="input (default; with the head that is tied to it), head (an output head that is not tied), or all",
    )


def add_runtime_argument(parser: argparse.ArgumentParser) -> None:
    """Declare how rows may lie in memory."""
    parser.add_argument(
        "--runtime", choices=RUNTIMES, help="decode the compact tables into this type once, to be faster"
    )


def page_path(name: str) -> Path:
    """Return where a page is to be written; raise, before anything slow, if that cannot be."""
    path = Path(name)
    if path.is_dir() or not path.parent.is_dir():
        raise CompactConfigError(f"`--html` is {name!r}, but a page is a file in a folder that is there.")
    return path


def add_verbose_argument(parser: argparse.ArgumentParser) -> None:
    """Declare how to ask where the time went."""
    parser.add_argument("--verbose", action="store_true", help="say on stderr what the time was spent on")


def add_text_arguments(parser: argparse.ArgumentParser, purpose: str, required: bool = False) -> None:
    """Declare where texts are and in which columns."""
    parser.add_argument(
        "--texts",
        action="append",
        required=required,
        metavar="SOURCE",
        help=f"{purpose}: a file of lines, JSON, JSON lines, CSV or TSV, a folder of such files, FILE:COLUMN, or a "
        "data set of the Hub (streamed); may be given several times",
    )
    parser.add_argument("--texts-config", metavar="NAME", help="configuration of a Hub data set")
    parser.add_argument("--texts-split", metavar="NAME", help="split of a Hub data set or a folder; by default train")
    parser.add_argument(
        "--texts-column",
        action="append",
        metavar="NAME",
        help="where rows have their text; given several times, a text each; by default it is found",
    )


def texts_of(options: argparse.Namespace, pair_column: str | None = None) -> Texts | None:
    """Return the texts that were named, if any were; raise if they cannot be read."""
    if options.texts is None:
        return None
    every = [
        read_texts(
            source,
            column=options.texts_column,
            pair_column=pair_column,
            config=options.texts_config,
            split=options.texts_split,
        )
        for source in options.texts
    ]
    return every[0] if len(every) == 1 else Texts(every)


def auto_class(name: str) -> Any:
    """Return the Auto class of a name."""
    if not name.startswith("AutoModel") or not hasattr(transformers, name):
        raise CompactConfigError(f"`--head` is {name!r}, but it must be an Auto class, as AutoModelForMaskedLM.")
    return getattr(transformers, name)


def token_options(options: argparse.Namespace) -> dict[str, Any]:
    """Return what was said of how often tokens occur, as `compress()` and `plan()` take it."""
    counts = options.token_counts
    if counts is not None and counts not in _COUNTS_FROM:
        counts = _read_counts(counts)
    return {"token_counts": counts, "texts": texts_of(options), "languages": options.languages}


def _read_counts(path: str) -> torch.Tensor:
    """Read a JSON list of counts."""
    try:
        counts = json.loads(Path(path).read_text(encoding="utf-8"))
        return torch.tensor(counts, dtype=torch.float64)
    except (json.JSONDecodeError, UnicodeDecodeError, TypeError, ValueError) as error:
        raise CompactConfigError(f"`--token-counts` {path!r} is no JSON list of numbers: {error}.") from error
