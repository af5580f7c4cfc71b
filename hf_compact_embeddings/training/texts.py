"""Texts to train on: from a list, a file, or a data set of the Hub, held or streamed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..finetuning.data import read_rows
from ..modeling.errors import CompactConfigError, CompactEmbeddingsError

# A text, or two that a model reads together.
Text = str | tuple[str, str]

_COLUMN = "text"
_JSON_SUFFIXES = (".json", ".jsonl")
_BYTES_TO_KNOW_TEXT_BY = 1024


class TextFile:
    """The texts of a file that are not empty, read anew at each pass: a line each, or columns of JSON lines."""

    def __init__(self, path: str | Path, column: str = _COLUMN, pair_column: str | None = None) -> None:
        """Note where the texts are."""
        self.path = Path(path)
        self.columns = (column, pair_column)
        if not self.path.is_file():
            raise CompactConfigError(f"`texts` {str(path)!r} is no file.")

    def __iter__(self) -> Iterator[Text]:
        """Read the file once."""
        structured = self.path.suffix in _JSON_SUFFIXES
        with self.path.open(encoding="utf-8", errors="replace") as file:
            for number, line in enumerate(file, 1):
                if text := self._text_in(line, number) if structured and line.strip() else line.strip():
                    yield text

    def _text_in(self, line: str, number: int) -> Text | None:
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise CompactConfigError(f"`texts` {self.path.name!r}, line {number}, is no JSON: {error}.") from error
        return text_of(row, *self.columns)


class HubTexts:
    """A column of a data set of the Hub, or two, streamed anew at each pass."""

    def __init__(
        self,
        name: str,
        config: str | None = None,
        split: str = "train",
        column: str = _COLUMN,
        pair_column: str | None = None,
    ) -> None:
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
        self.columns = (column, pair_column)

    def __iter__(self) -> Iterator[Text]:
        """Stream the texts that are not empty."""
        for row in self.rows:
            if text := text_of(row, *self.columns):
                yield text


def _of_file(path: Path, column: str, pair_column: str | None) -> Iterable[Any]:
    """Return the texts or rows of a file."""
    texts = TextFile(path, column, pair_column)
    with path.open("rb") as file:
        start = file.read(_BYTES_TO_KNOW_TEXT_BY)
    if b"\0" in start:
        raise CompactConfigError(f"`texts` {path.name!r} is no text: give a text file, JSON, JSON lines or CSV.")
    if path.suffix == ".csv" or path.suffix in _JSON_SUFFIXES and start.lstrip().startswith(b"["):
        return read_rows(path)
    return texts


def text_of(row: Any, column: str, pair_column: str | None = None) -> Text | None:
    """Return the text or texts of a row, which holds them itself or has them in columns; None if one is empty."""
    if isinstance(row, str):
        return row.strip() or None
    if isinstance(row, tuple) and len(row) == 2 and all(isinstance(text, str) for text in row):
        texts = [text.strip() for text in row]
    else:
        texts = [_value_of(row, name).strip() for name in (column, pair_column) if name is not None]
    if not all(texts):
        return None
    return texts[0] if len(texts) == 1 else (texts[0], texts[1])


def _value_of(row: Any, column: str) -> str:
    if not isinstance(row, dict) or column not in row:
        columns = ", ".join(row) if isinstance(row, dict) else f"none: a row is a {type(row).__name__}"
        raise CompactConfigError(f"`texts` has no column {column!r}; its columns are {columns}.")
    return str(row[column] or "")


def read_texts(
    source: str | Path | Iterable[Any],
    *,
    config: str | None = None,
    split: str = "train",
    column: str = _COLUMN,
    pair_column: str | None = None,
) -> Sequence[Text] | HubTexts:
    """Return texts as a list, or as a stream if they are a data set of the Hub.

    Args:
        source: a file (text, a text a line; JSON, JSON lines or CSV), the name of a data set, or an iterable of
            strings, of pairs of strings, or of rows, as `datasets` gives them.
        config: of a data set of the Hub.
        split: of a data set of the Hub.
        column: where rows have their text.
        pair_column: where rows have a second text, which a model reads together with the first.
    """
    if isinstance(source, HubTexts):
        return source
    if isinstance(source, Mapping):
        raise CompactConfigError(f"`texts` has the parts {', '.join(map(str, source))}: give one of them.")
    if hasattr(source, "iterrows"):
        raise CompactConfigError("`texts` is a table of pandas: give a column of it, or `table.to_dict('records')`.")
    if isinstance(source, str | Path):
        if not Path(source).is_file() and isinstance(source, str) and "\n" not in source and " " not in source:
            return HubTexts(source, config, split, column, pair_column)
        source = _of_file(Path(source), column, pair_column)
    texts = [text for row in source if (text := text_of(row, column, pair_column))]
    if not texts:
        raise CompactConfigError("`texts` is empty, or holds empty strings only.")
    return texts
