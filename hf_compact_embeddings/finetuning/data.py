"""What is trained and measured on: rows from lists, files and the Hub, and running text cut into pieces."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from ..evidence.text_files import SUFFIXES, FileRows, is_text_file, suffix_of
from ..evidence.texts import open_hub_data
from ..modeling.errors import CompactConfigError

# Texts that a tokenizer is given at a time.
_TEXTS_PER_BATCH = 1000
Rows = list[dict[str, Any]]


def read_rows(source: Any, split: str | None = None, config: str | None = None) -> Rows:
    """Return rows as dictionaries.

    Args:
        source: rows; a mapping from splits to rows; a file (JSON lines, JSON list, CSV, TSV, or text with a line a
            row); a folder with such a file for each split; or the name of a data set of the Hub.
        split: of a mapping, a folder, or a data set of the Hub.
        config: of a data set of the Hub.
    """
    if isinstance(source, str | Path):
        return _read_path(Path(source), split, config)
    if isinstance(source, Mapping):
        if split not in source:
            raise CompactConfigError(f"`data` has no split {split!r}; its splits are {', '.join(map(str, source))}.")
        source = source[split]
    rows = _rows_of(source)
    if not rows:
        raise CompactConfigError("`data` has no rows.")
    return rows


def _read_path(path: Path, split: str | None, config: str | None) -> Rows:
    if path.is_dir():
        found = sorted(file for file in path.iterdir() if is_text_file(file) and file.name.split(".")[0] == split)
        if not found:
            there = ", ".join(sorted(file.name for file in path.iterdir())) or "nothing"
            raise CompactConfigError(f"`data` {str(path)!r} has no file for the split {split!r}; it holds {there}.")
        path = min(found, key=lambda file: SUFFIXES.index(suffix_of(file)))
    # Labelled rows are few and each counts: bytes that are no text are an error here.
    known = path.is_file() or is_text_file(path)
    source = FileRows(path, "data", "strict") if known else open_hub_data(str(path), config, split or "test", "data")
    rows = _rows_of(source)
    if not rows:
        raise CompactConfigError(f"`data` {str(path)!r} has no rows.")
    return rows


def _rows_of(source: Iterable[Any]) -> Rows:
    return [{"text": row} if isinstance(row, str) else _row(row, index) for index, row in enumerate(source)]


def _row(value: Any, index: int) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise CompactConfigError(
            f'`data` has a {type(value).__name__} as row {index}, but a row names its columns, as {{"text": "…"}} does.'
        )
    return dict(value)


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
