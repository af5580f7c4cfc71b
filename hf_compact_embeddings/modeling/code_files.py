"""The code files inside a checkpoint: what is shipped, its hashes, and whether it is still what was shipped."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .transformers_internals import get_relative_import_files


def shipped_files(module_file: str | Path) -> list[Path]:
    """Return the files that saving copies into a checkpoint for a class of this module file."""
    return [Path(file) for file in sorted({str(module_file), *get_relative_import_files(str(module_file))})]


def code_record(files: Iterable[Path]) -> dict[str, Any]:
    """Return what `config.compact_code` holds: the SHA-256 of each file, and one of all.

    The one of all is that of the lines that `sha256sum *.py` prints.
    """
    hashes = {file.name: _sha256(file.read_bytes()) for file in sorted(files, key=lambda file: file.name)}
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


def _listing(hashes: dict[str, str]) -> str:
    return "".join(f"{hashes[name]}  {name}\n" for name in sorted(hashes))


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
