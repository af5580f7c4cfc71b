"""The code files inside a checkpoint: which its methods need, their hashes, and whether they are what was shipped."""

from __future__ import annotations

import ast
import hashlib
import os
import re
from collections.abc import Iterable, Mapping
from itertools import takewhile
from pathlib import Path
from typing import Any

from transformers.utils import logging

logger = logging.get_logger(__name__)

# How the files in this folder import each other, and `modeling_compact` what not all checkpoints need.
_IMPORT = re.compile(r"^\s*from \.(\w+) import ", re.MULTILINE)
_OPTIONAL_IMPORT = re.compile(r"^from \.(?:structure_)?(\w+) import \w+  # noqa: F401\n", re.MULTILINE)


def shipped_files(module_file: str | Path, parts: Iterable[str] = ()) -> dict[str, bytes]:
    """Return the files that a checkpoint with these methods, or "layers", needs, by name.

    They are the module file, without the import lines of other parts, and all that it imports from its folder; each
    without the docstrings of functions and classes.
    """
    needed = set(parts)
    start = Path(module_file)
    found: dict[str, bytes] = {}
    waiting = [start]
    while waiting:
        file = waiting.pop()
        if file.name in found:
            continue
        text = file.read_text(encoding="utf-8")
        if file == start:
            text = _OPTIONAL_IMPORT.sub(lambda line: line[0] if line[1] in needed else "", text)
        found[file.name] = without_docstrings(text.encode())
        waiting += [file.with_name(f"{name}.py") for name in _IMPORT.findall(text)]
    return dict(sorted(found.items()))


def without_docstrings(source: bytes) -> bytes:
    """Return a source without the docstrings of its functions and classes; the module's own, and comments, stay."""
    lines = source.split(b"\n")
    texts = [
        (text, text is node.body[-1])
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        # Where a docstring is gone, a text behind it would be the next one.
        for text in takewhile(_is_text, node.body)
    ]
    # From the end on, so that places further up stay what they are.
    for text, is_last in sorted(texts, key=lambda found: (-found[0].lineno, -found[0].col_offset)):
        first, last = text.lineno - 1, text.end_lineno or text.lineno
        before, after = lines[first][: text.col_offset], lines[last - 1][text.end_col_offset :]
        if is_last or (before + after).strip():
            lines[first:last] = [before + b"..." + after]
            continue
        while not lines[last].strip():
            last += 1
        del lines[first:last]
    return b"\n".join(lines)


def _is_text(statement: ast.stmt) -> bool:
    value = statement.value if isinstance(statement, ast.Expr) else None
    return isinstance(value, ast.Constant) and isinstance(value.value, str)


def write_files(folder: str | os.PathLike[str], files: Mapping[str, bytes]) -> None:
    """Write files into a folder, which is made if it is not there."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        Path(folder, name).write_bytes(content)


def code_record(files: Mapping[str, bytes]) -> dict[str, Any]:
    """Return what `config.compact_code` holds: the SHA-256 of each file, and one of all.

    The one of all is that of the lines that `sha256sum *.py` prints.
    """
    hashes = {name: _sha256(files[name]) for name in sorted(files)}
    return {"sha256": _sha256(_listing(hashes).encode()), "files": hashes}


def changed_files(record: dict[str, Any] | None, folder: str | Path) -> list[str]:
    """Return the names of the recorded files that lie in a folder with another content than recorded.

    Files that are absent are left out: Transformers copies only those that it runs into its cache.
    """
    if record is None:
        return []
    files = record.get("files")
    if not isinstance(files, dict) or record.get("sha256") != _sha256(_listing(files).encode()):
        return ["config.json (`compact_code` contradicts itself)"]
    found = {name: Path(folder) / Path(name).name for name in files}
    return [name for name, path in found.items() if path.is_file() and _sha256(path.read_bytes()) != files[name]]


def warn_of_changed_code(record: dict[str, Any] | None, source: object) -> None:
    """Warn if code files are not those that were saved: beside this file as remote code, else in the folder."""
    remote = __name__.startswith("transformers_modules")
    folder = Path(__file__).parent if remote else Path(str(source))
    changed = changed_files(record, folder) if remote or folder.is_dir() else []
    if changed:
        logger.warning(
            f"The code files of {str(source)!r} are not those that were saved with it: {', '.join(changed)} "
            f"differ from the SHA-256 that `compact_code` in its configuration records. "
            + ("This code is running now. " if remote else "This code was not run: the installed package was. ")
            + "Load the checkpoint from where you trust it, at a pinned revision, or save it again."
        )


def _listing(hashes: dict[str, str]) -> str:
    return "".join(f"{hashes[name]}  {name}\n" for name in sorted(hashes))


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
