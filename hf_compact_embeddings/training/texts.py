"""Texts to train on: from a list, a file, or a data set of the Hub, held or streamed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ..modeling.errors import CompactConfigError, CompactEmbeddingsError

_COLUMN = "text"
_JSON_SUFFIXES = (".json", ".jsonl")


class TextFile:
    """The texts of a file that are not empty, read anew at each pass: a line each, or a column of JSON lines."""

    def __init__(self, path: str | Path, column: str = _COLUMN) -> None:
        """Note where the texts are."""
        self.path = Path(path)
        self.column = column
        if not self.path.is_file():
            raise CompactConfigError(f"`texts` {str(path)!r} is no file.")

    def __iter__(self) -> Iterator[str]:
        """Read the file once."""
        structured = self.path.suffix in _JSON_SUFFIXES
        with self.path.open(encoding="utf-8", errors="replace") as file:
            for number, line in enumerate(file, 1):
                text = self._column_of(line, number) if structured and line.strip() else line
                if text := text.strip():
                    yield text

    def _column_of(self, line: str, number: int) -> str:
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise CompactConfigError(f"`texts` {self.path.name!r}, line {number}, is no JSON: {error}.") from error
        return text_of(row, self.column)


class HubTexts:
    """A column of a data set of the Hub, streamed anew at each pass."""

    def __init__(self, name: str, config: str | None = None, split: str = "train", column: str = _COLUMN) -> None:
        """Open the stream, which fails here if the data set is out of reach."""
        try:
            from datasets import load_dataset
        except ImportError as error:
            raise CompactEmbeddingsError(
                "Data sets of the Hub need `datasets`: run `pip install 'hf_compact_embeddings[train]'`."
            ) from error
        try:
            self.rows = load_dataset(name, config, split=split, streaming=True)
        except (OSError, ValueError, RuntimeError) as error:
            raise CompactConfigError(
                f"`texts` {name!r} is no file here, and no data set of the Hub that could be opened: {error}"
            ) from error
        self.column = column

    def __iter__(self) -> Iterator[str]:
        """Stream the texts that are not empty."""
        for row in self.rows:
            if text := text_of(row, self.column).strip():
                yield text


def text_of(row: Any, column: str) -> str:
    """Return the text of a row, which is one itself or has it in a column."""
    if isinstance(row, str):
        return row
    if not isinstance(row, dict) or column not in row:
        columns = ", ".join(row) if isinstance(row, dict) else f"none: a row is a {type(row).__name__}"
        raise CompactConfigError(f"`texts` has no column {column!r}; its columns are {columns}.")
    return str(row[column] or "")


def read_texts(
    source: str | Path | Iterable[Any], *, config: str | None = None, split: str = "train", column: str = _COLUMN
) -> Sequence[str] | HubTexts:
    """Return texts as a list, or as a stream if they are a data set of the Hub.

    Args:
        source: a file (text, a text a line; or JSON lines), the name of a data set, or an iterable of strings or
            of rows, as `datasets` gives them.
        config: of a data set of the Hub.
        split: of a data set of the Hub.
        column: where rows have their text.
    """
    if isinstance(source, HubTexts):
        return source
    if isinstance(source, str | Path):
        if not Path(source).is_file() and isinstance(source, str) and "\n" not in source and " " not in source:
            return HubTexts(source, config, split, column)
        source = TextFile(source, column)
    texts = [text for row in source if (text := text_of(row, column).strip())]
    if not texts:
        raise CompactConfigError("`texts` is empty, or holds empty strings only.")
    return texts
