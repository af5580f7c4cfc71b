"""Texts of any source, read in one way: strings, rows with a column of text, files, folders, data sets of the Hub."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

import torch

from ..modeling.errors import CompactConfigError, CompactEmbeddingsError
from ..progress import step
from .text_files import SUFFIXES, FileRows, is_text_file

# A text, or two that a model reads together.
Text = str | tuple[str, str]

# What columns of text are called, the surest first. Several in a line are a text each.
_KNOWN_COLUMNS = (
    ("text",),
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question", "context"),
    ("question", "sentence"),
    ("question1", "question2"),
    ("sentence",),
    ("content",),
)
# Columns are found in so many rows: the first one may have an empty text.
_ROWS_TO_FIND_COLUMNS = 20
# Where a sample does: texts that stand together are often alike.
_TEXTS_TO_CHOOSE_FROM = 16_384
_TEXTS_PER_BATCH = 256


class Texts:
    """Texts that are not empty, read anew at each pass and never held where the source does not hold them."""

    def __init__(
        self,
        parts: Sequence[Iterable[Any]],
        column: str | Sequence[str] | None = None,
        pair_column: str | None = None,
        argument: str = "texts",
    ) -> None:
        """Note where the texts are.

        Args:
            parts: sources of rows, read one after the other; each has its own columns.
            column: where rows have their text; several are a text each. By default it is found.
            pair_column: where rows have a second text, which a model reads together with the first.
            argument: what messages call the source.
        """
        self.parts = parts
        if column is None and pair_column is not None:
            column = "text"
        self.columns = (column,) if isinstance(column, str) else tuple(column or ())
        self.pair_column = pair_column
        self.argument = argument
        if pair_column is not None and len(self.columns) != 1:
            raise CompactConfigError(f"`pair_column` is {pair_column!r}, but `column` names several: {self.columns}.")

    def __iter__(self) -> Iterator[Text]:
        """Read the source once."""
        for part in self.parts:
            yield from self._texts_in(part)

    def _texts_in(self, part: Iterable[Any]) -> Iterator[Text]:
        rows = iter(part)
        first = list(islice(rows, _ROWS_TO_FIND_COLUMNS))
        columns = self.columns
        for row in chain(first, rows):
            if isinstance(row, str):
                texts: Iterable[Text] = [row.strip()]
            elif isinstance(row, tuple) and len(row) == 2 and all(isinstance(text, str) for text in row):
                texts = [_paired(*row)]
            else:
                if not columns and isinstance(row, Mapping):
                    columns = text_columns(
                        [other for other in first if isinstance(other, Mapping)] or [row], self.argument
                    )
                found = [self._text_at(row, column) for column in columns or ("text",)]
                pair = None if self.pair_column is None else _paired(found[0], self._text_at(row, self.pair_column))
                texts = found if pair is None else [pair]
            yield from (text for text in texts if text)

    def _text_at(self, row: Any, column: str) -> str:
        if not isinstance(row, Mapping) or column not in row:
            columns = ", ".join(map(str, row)) if isinstance(row, Mapping) else f"none: a row is a {type(row).__name__}"
            raise CompactConfigError(f"`{self.argument}` has no column {column!r}; its columns are {columns}.")
        value = row[column]
        if value is not None and not isinstance(value, str | int | float):
            raise CompactConfigError(f"`{self.argument}` has a {type(value).__name__} in column {column!r}, no text.")
        return "" if value is None else str(value).strip()


def _paired(first: str, second: str) -> Text:
    """Return two texts as one; an empty one if either is empty."""
    return (first.strip(), second.strip()) if first.strip() and second.strip() else ""


def single_texts(texts: Iterable[Text]) -> Iterator[str]:
    """Yield texts, and those of a pair one after the other: for what reads one at a time."""
    for text in texts:
        yield from (text,) if isinstance(text, str) else text


def text_batches(texts: Iterable[Text], description: str, size: int) -> Iterator[list[str]]:
    """Yield single texts that are not empty, some at a time, under a progress bar."""
    if isinstance(texts, str):
        raise CompactConfigError("`texts` is one string, but it must be an iterable of strings.")
    singles = single_texts(texts)
    with step(description) as progress:
        while batch := list(islice(singles, size)):
            if kept := [text for text in batch if text]:
                yield kept
            progress.update(len(batch))


def no_tokens() -> CompactConfigError:
    """Return the error of whoever has read all texts and got nothing."""
    return CompactConfigError("`texts` gave no tokens: it is empty, or holds empty strings only.")


def some_texts(texts: Iterable[Text]) -> list[str]:
    """Return texts from all over the first ones, in an order of which any beginning is a fair sample."""
    beginning = islice(single_texts(texts), _TEXTS_TO_CHOOSE_FROM)
    first = list(chain.from_iterable(text_batches(beginning, "Reading texts", _TEXTS_PER_BATCH)))
    order = torch.randperm(len(first), generator=torch.Generator().manual_seed(0)).tolist()
    return [first[place] for place in order]


class HubTexts(Texts):
    """The texts of a data set of the Hub, streamed anew at each pass."""

    def __init__(
        self,
        name: str,
        config: str | None = None,
        split: str = "train",
        column: str | Sequence[str] | None = None,
        pair_column: str | None = None,
        argument: str = "texts",
    ) -> None:
        """Open the stream, which fails here if the data set is out of reach."""
        super().__init__([open_hub_data(name, config, split, argument, streaming=True)], column, pair_column, argument)


def open_hub_data(name: str, config: str | None, split: str, argument: str, streaming: bool = False) -> Iterable[Any]:
    """Return the rows of a data set of the Hub, as `datasets` gives them."""
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise CompactEmbeddingsError(
            f"`{argument}` {name!r} is no file or folder here, and data sets of the Hub need `datasets`: "
            "run `pip install 'hf_compact_embeddings[train]'`."
        ) from error
    try:
        return load_dataset(name, config, split=split, streaming=streaming)
    except (OSError, ValueError, RuntimeError) as error:
        raise CompactConfigError(
            f"`{argument}` {name!r} is no file or folder here, and no data set of the Hub that could be opened: {error}"
        ) from error


def read_texts(
    source: Any,
    *,
    column: str | Sequence[str] | None = None,
    pair_column: str | None = None,
    config: str | None = None,
    split: str | None = None,
    argument: str = "texts",
) -> Texts:
    """Return the texts of a source, to be read as often as needed; raise here if there are none.

    Args:
        source: strings, pairs of strings, or rows that name their columns, as `datasets` gives them; a file of lines,
            JSON, JSON lines, CSV or TSV, also compressed, or a folder of such files; the name of a data set of the Hub
            (streamed); or a list of files and folders. "FILE:COLUMN" names a column in place.
        column: where rows have their text, or several columns with a text each. By default `text`, `sentence` and
            their like are found, and else the columns that hold running text.
        pair_column: where rows have a second text, which a model reads together with the first.
        config: of a data set of the Hub.
        split: of a data set of the Hub, or of a folder that has files for splits; by default "train", and of a folder
            without such a file all of it.
        argument: what messages call the source.
    """
    if isinstance(source, Texts):
        return source
    if isinstance(source, Mapping):
        raise CompactConfigError(f"`{argument}` has the parts {', '.join(map(str, source))}: give one of them.")
    if hasattr(source, "iterrows"):
        raise CompactConfigError(
            f"`{argument}` is a table of pandas: give a column of it, or `table.to_dict('records')`."
        )
    if isinstance(source, str | Path):
        texts = _texts_at(source, column, pair_column, config, split, argument)
    elif not isinstance(source, Iterable):
        raise CompactConfigError(f"`{argument}` is a {type(source).__name__}, but it must be texts, or where they are.")
    else:
        # What can be read once only is drawn into a list.
        held = list(source) if iter(source) is source else source
        if _are_paths(held):
            # Each file may name its own column, so that each is texts already.
            texts = Texts([_texts_at(path, column, pair_column, config, split, argument) for path in held])
        else:
            texts = Texts([held], column, pair_column, argument)
    if next(iter(texts), None) is None:
        raise CompactConfigError(f"`{argument}` is empty, or holds empty strings only.")
    return texts


def _are_paths(items: Any) -> bool:
    """Whether the items of a list are all paths: a single word may be a text, even where a folder has its name."""
    if not isinstance(items, Sequence) or not items:
        return False
    return all(
        isinstance(item, Path)
        or (isinstance(item, str) and (_is_written_as_path(item) or ("/" in item and _is_path(item))))
        for item in items
    )


def _is_path(text: str) -> bool:
    """Whether a string is a path of a file or folder, or is written like one; a missing file is then an error."""
    return _is_written_as_path(text) or (bool(text) and os.path.exists(_split_column(text)[0]))


def _is_written_as_path(text: str) -> bool:
    path, _ = _split_column(text)
    return not any(map(str.isspace, text)) and (is_text_file(path) or text.startswith(("/", "./", "../", "~/")))


def _split_column(text: str) -> tuple[Path, tuple[str, ...]]:
    """Return the path and the columns of "FILE:COLUMN" or "FILE:COLUMN+COLUMN"; no columns where none are named."""
    path, separator, columns = text.rpartition(":")
    if not separator or not columns or "/" in columns or os.path.exists(text):
        return Path(text), ()
    return Path(path), tuple(columns.split("+"))


def _texts_at(
    source: str | Path,
    column: str | Sequence[str] | None,
    pair_column: str | None,
    config: str | None,
    split: str | None,
    argument: str,
) -> Texts:
    """Return the texts of a file, a folder, or a data set of the Hub."""
    if isinstance(source, str) and (not source or any(map(str.isspace, source))) and not _is_path(source):
        start = source[:40] + ("…" if len(source) > 40 else "")
        raise CompactConfigError(f"`{argument}` is one string, {start!r}, and no file: put texts into a list.")
    path, named = (source, ()) if isinstance(source, Path) else _split_column(source)
    column = named or column
    path = path.expanduser()
    if path.is_dir():
        files = _files_in(path, split, argument)
    elif path.is_file() or isinstance(source, Path) or _is_path(source):
        files = [path]
    else:
        return HubTexts(path.as_posix(), config, split or "train", column, pair_column, argument)
    return Texts([FileRows(file, argument) for file in files], column, pair_column, argument)


def _files_in(folder: Path, split: str | None, argument: str) -> list[Path]:
    """Return the files of a folder that hold texts: those of the split, where there are any that are named after it."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and is_text_file(path))
    of_split = [path for path in files if path.name.split(".")[0] == (split or "train")]
    if not files or (split is not None and not of_split):
        there = ", ".join(sorted(path.name for path in folder.iterdir())[:10]) or "nothing"
        missing = "file" if split is None else f"file for the split {split!r}"
        raise CompactConfigError(
            f"`{argument}` {str(folder)!r} has no {missing} that ends in {', '.join(SUFFIXES)}; it holds {there}."
        )
    return of_split or files


def text_columns(rows: Sequence[Mapping[str, Any]], argument: str = "texts") -> tuple[str, ...]:
    """Return the columns of text in rows, of which the first few tell: by their name, or by what is in them."""
    rows = rows[:_ROWS_TO_FIND_COLUMNS]
    strings = {
        str(column): [row[column] for row in rows if isinstance(row.get(column), str)]
        for column in rows[0]
        if all(isinstance(row.get(column, ""), str | None) for row in rows)
    }
    for known in _KNOWN_COLUMNS:
        if all(column in strings for column in known):
            return known
    strings = {column: values for column, values in strings.items() if any(map(_is_no_number, values))}
    # Ids and labels are single words; what runs over several is text.
    running = tuple(column for column, values in strings.items() if any(len(value.split()) > 1 for value in values))
    if running or len(strings) == 1:
        return running or tuple(strings)
    raise CompactConfigError(
        f"`{argument}` has no column {'text'!r}; its columns are {', '.join(map(str, rows[0]))}"
        + (": name one of them." if strings else ", and none of them holds text.")
    )


def _is_no_number(value: str) -> bool:
    try:
        float(value)
    except ValueError:
        return bool(value.strip())
    return False
