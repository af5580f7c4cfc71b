"""Files of texts or rows: lines, JSON, JSON lines, CSV and TSV, also compressed, read a row at a time."""

from __future__ import annotations

import bz2
import csv
import gzip
import json
import lzma
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, cast

from ..modeling.errors import CompactConfigError

JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")
TABLE_SUFFIXES = (".csv", ".tsv")
TEXT_SUFFIXES = (".txt", ".text", ".md")
SUFFIXES = (*JSON_SUFFIXES, *TABLE_SUFFIXES, *TEXT_SUFFIXES)
_OPENERS: dict[str, Callable[..., IO[Any]]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
_BYTES_TO_KNOW_TEXT_BY = 1024


def suffix_of(path: Path) -> str:
    """Return what a file holds by its name: ".csv" also of a file that ends in ".csv.gz"."""
    return (path.with_suffix("") if path.suffix in _OPENERS else path).suffix


def is_text_file(path: Path) -> bool:
    """Whether a path names a file of a kind that is known to hold texts."""
    return suffix_of(path) in SUFFIXES


class FileRows:
    """The rows of one file, read anew at each pass: strings, or whatever JSON holds, or a dictionary for a CSV row."""

    def __init__(self, path: str | Path, argument: str = "texts", errors: str = "replace") -> None:
        """Check that the file is there and holds text.

        Args:
            path: of the file. Any other suffix than those of JSON and tables means text, a row a line.
            argument: what messages call the source.
            errors: what becomes of bytes that are no UTF-8, as in `open()`.
        """
        self.path = Path(path)
        self.argument = argument
        self.errors = errors
        if not self.path.is_file():
            raise CompactConfigError(f"`{argument}` {str(path)!r} is no file.")
        if b"\0" in cast(bytes, self._read("rb", lambda file: file.read(_BYTES_TO_KNOW_TEXT_BY))):
            raise CompactConfigError(
                f"`{argument}` {self.path.name!r} is no text: give a text file, JSON, JSON lines, CSV or TSV."
            )

    def __iter__(self) -> Iterator[Any]:
        """Read the file once."""
        suffix = suffix_of(self.path)
        read = _json_rows if suffix in JSON_SUFFIXES else _table_rows if suffix in TABLE_SUFFIXES else _lines
        try:
            # Spreadsheets put a byte-order mark in front. The `csv` module asks for line ends as they are.
            newline = "" if suffix in TABLE_SUFFIXES else None
            with self._open("rt", encoding="utf-8-sig", errors=self.errors, newline=newline) as file:
                yield from read(file, suffix)
        except (OSError, EOFError, lzma.LZMAError, ValueError, csv.Error) as error:
            raise CompactConfigError(f"`{self.argument}` {str(self.path)!r} cannot be read: {error}") from error

    def _open(self, mode: str, **options: Any) -> IO[Any]:
        return _OPENERS.get(self.path.suffix, open)(self.path, mode, **options)

    def _read(self, mode: str, what: Callable[[IO[Any]], Any]) -> Any:
        try:
            with self._open(mode) as file:
                return what(file)
        except (OSError, EOFError, lzma.LZMAError) as error:
            raise CompactConfigError(f"`{self.argument}` {str(self.path)!r} cannot be read: {error}") from error


def _lines(file: IO[str], _: str) -> Iterator[str]:
    """Yield lines that are not blank. Not `splitlines()`: texts may hold the other line separators of Unicode."""
    yield from (line.rstrip("\n") for line in file if line.strip())


def _json_rows(file: IO[str], _: str) -> Iterator[Any]:
    """Yield the values of a JSON list, or of JSON lines."""
    start = file.readline()
    while start and not start.strip():
        start = file.readline()
    file.seek(0)
    if start.lstrip().startswith("["):
        yield from json.load(file)
        return
    for number, line in enumerate(file, 1):
        if line.strip():
            try:
                yield json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"line {number} is no JSON: {error}") from error


def _table_rows(file: IO[str], suffix: str) -> Iterator[dict[str, str]]:
    """Yield rows under the header of the first line."""
    if suffix == ".csv":
        yield from csv.DictReader(file)
    else:
        # Tab-separated tasks, GLUE's among them, quote nothing: a quotation mark is one of the text's own.
        yield from csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
