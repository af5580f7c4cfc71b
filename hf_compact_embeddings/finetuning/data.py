"""What is trained and measured on: rows from lists, files and the Hub, and running text cut into pieces."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from ..modeling.errors import CompactConfigError, CompactEmbeddingsError

# Texts that a tokenizer is given at a time.
_TEXTS_PER_BATCH = 1000
_SUFFIXES = (".jsonl", ".json", ".csv", ".txt")
Rows = list[dict[str, Any]]


def read_rows(source: Any, split: str | None = None, config: str | None = None) -> Rows:
    """Return rows as dictionaries.

    Args:
        source: rows; a mapping from splits to rows; a file (JSON lines, JSON list, CSV, or text with a line a row);
            a folder with such a file for each split; or the name of a data set of the Hub.
        split: of a mapping, a folder, or a data set of the Hub.
        config: of a data set of the Hub.
    """
    if isinstance(source, str | Path):
        return _read_path(Path(source), split, config)
    if isinstance(source, Mapping):
        if split not in source:
            raise CompactConfigError(f"`data` has no split {split!r}; its splits are {', '.join(map(str, source))}.")
        source = source[split]
    rows = [{"text": row} if isinstance(row, str) else _row(row, index) for index, row in enumerate(source)]
    if not rows:
        raise CompactConfigError("`data` has no rows.")
    return rows


def _read_path(path: Path, split: str | None, config: str | None) -> Rows:
    if path.is_dir():
        found = [path / f"{split}{suffix}" for suffix in _SUFFIXES]
        chosen = next((file for file in found if file.is_file()), None)
        if chosen is None:
            there = ", ".join(sorted(file.name for file in path.iterdir())) or "nothing"
            raise CompactConfigError(f"`data` {str(path)!r} has no file for the split {split!r}; it holds {there}.")
        path = chosen
    if not path.is_file():
        if path.suffix in _SUFFIXES:
            raise CompactConfigError(f"`data` {str(path)!r} is no file.")
        return _read_hub(str(path), split, config)
    try:
        rows = _parse(path)
    except (json.JSONDecodeError, UnicodeDecodeError, csv.Error) as error:
        raise CompactConfigError(f"`data` {str(path)!r} cannot be read: {error}") from error
    if not rows:
        raise CompactConfigError(f"`data` {str(path)!r} has no rows.")
    return rows


def _parse(path: Path) -> Rows:
    # Spreadsheets put a byte-order mark in front.
    text = path.read_text(encoding="utf-8-sig")
    if path.suffix == ".csv":
        return list(csv.DictReader(io.StringIO(text)))
    # Not `splitlines()`: JSON strings may hold the other line separators of Unicode as they are.
    lines = [line for line in text.split("\n") if line.strip()]
    if path.suffix == ".txt":
        return [{"text": line} for line in lines]
    values = json.loads(text) if text.lstrip().startswith("[") else [json.loads(line) for line in lines]
    return [_row(value, index) for index, value in enumerate(values)]


def _row(value: Any, index: int) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise CompactConfigError(
            f'`data` has a {type(value).__name__} as row {index}, but a row names its columns, as {{"text": "…"}} does.'
        )
    return dict(value)


def _read_hub(name: str, split: str | None, config: str | None) -> Rows:
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise CompactEmbeddingsError(
            "Data sets of the Hub need `datasets`: run `pip install 'hf_compact_embeddings[train]'`."
        ) from error
    try:
        return [dict(row) for row in load_dataset(name, config, split=split or "test")]
    except (OSError, ValueError, RuntimeError) as error:
        raise CompactConfigError(
            f"`data` {name!r} is no file or folder here, and no data set of the Hub that could be loaded: {error}"
        ) from error


def require_columns(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], name: str = "data") -> None:
    """Raise unless all columns are there; the message lists those that are."""
    if not rows:
        raise CompactConfigError(f"`{name}` has no rows.")
    for index, row in enumerate(rows):
        if missing := [column for column in columns if column not in row]:
            where = f" in row {index}" if index else ""
            raise CompactConfigError(
                f"`{name}` has no column {', '.join(map(repr, missing))}{where}, but the task needs "
                f"{', '.join(columns)}; its columns are {', '.join(row)}."
            )


def number_in(value: Any, index: int, column: str, names: Sequence[str] = ()) -> float:
    """Return a label or score as a number, or raise; the message lists the names that it may have instead."""
    try:
        return float(value)
    except (TypeError, ValueError):
        wanted = f"{', '.join(names)} or its number" if names else "a number"
        raise CompactConfigError(
            f"`data` has the {column} {value!r} in row {index}, but it must be {wanted}."
        ) from None


def require_padding(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise if texts cannot be put into a batch."""
    if tokenizer.pad_token_id is None:
        raise CompactConfigError("`tokenizer` has no padding token: set `tokenizer.pad_token`, say to its `eos_token`.")


def stream_pieces(texts: Iterable[str], tokenizer: PreTrainedTokenizerBase, length: int) -> Iterator[list[int]]:
    """Yield a text as pieces of `length` tokens, special ones at both ends where the tokenizer has them.

    Lines are joined, as language models are trained; the rest that does not fill a piece is dropped. The text is not
    held in memory. One that does not fill a single piece raises.
    """
    prefix, suffix = _special_ends(tokenizer)
    body = length - len(prefix) - len(suffix)
    if body < 1:
        raise CompactConfigError(f"A piece of {length} tokens has no room beside the tokenizer's special ones.")
    left: list[int] = []
    empty = True
    for batch in _batches(texts):
        for ids in tokenizer(batch, add_special_tokens=False, verbose=False)["input_ids"]:
            left.extend(ids)
        whole = len(left) // body * body
        for start in range(0, whole, body):
            empty = False
            yield [*prefix, *left[start : start + body], *suffix]
        left = left[whole:]
    if empty:
        raise CompactConfigError(f"The text has {len(left)} tokens, but a piece needs {body}: give more text.")


def _special_ends(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """Return the ids that the tokenizer puts before and after a text."""
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    full = list(tokenizer("a")["input_ids"])
    start = next((i for i in range(len(full)) if full[i : i + len(plain)] == list(plain)), 0)
    return full[:start], full[start + len(plain) :]


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    for text in texts:
        if text.strip():
            batch.append(text)
        if len(batch) == _TEXTS_PER_BATCH:
            yield batch
            batch = []
    if batch:
        yield batch
