"""Files: what a benchmark reads, and the record that it writes with its command, its versions and its figures."""

from __future__ import annotations

import json
import platform
import shlex
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
_PACKAGES = ("hf_compact_embeddings", "torch", "transformers")


def command() -> str:
    """Return the command line that runs, without where on this machine files are: folder and name say what they are."""
    script = Path(sys.argv[0])
    module = ".".join(["benchmarks", script.parent.name, script.stem]).replace("benchmarks.benchmarks.", "benchmarks.")
    return shlex.join(["python", "-m", module, *map(_shortened, sys.argv[1:])])


def _shortened(word: str) -> str:
    """Shorten a path to folder and name, also one behind a name as in NAME=PATH."""
    name, equals, path = ("", "", word) if word.startswith("/") else word.partition("=")
    return name + equals + ("/".join(Path(path).parts[-2:]) if path.startswith("/") else path)


def versions(*others: str) -> dict[str, str]:
    """Return the versions of Python, of this package and those that it stands on, and of others that are installed."""
    found = {"python": platform.python_version()}
    for name in (*_PACKAGES, *others):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def write(path: str | Path, results: Any, **details: Any) -> None:
    """Write results as JSON, with the command and the versions before them."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {"command": command(), "versions": versions(), **details, "results": results}
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def read_lines(path: str | Path) -> list[str]:
    """Return the lines of a text file that are not empty."""
    # Not `splitlines()`: a text may hold the other line separators of Unicode.
    return [line.strip() for line in Path(path).read_text(encoding="utf-8").split("\n") if line.strip()]


def read_rows(path: str | Path) -> list[dict[str, Any]]:
    """Read JSON lines."""
    return [json.loads(line) for line in read_lines(path)]


def layout(header: list[str], rows: list[list[str]]) -> str:
    """Lay out rows under a header; the first column to the left, the others to the right."""
    columns = list(zip(header, *rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    lines = []
    for row in [header, ["-" * width for width in widths], *rows]:
        first, *others = zip(row, widths, strict=True)
        lines.append("  ".join([first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]).rstrip())
    return "\n".join(lines)
