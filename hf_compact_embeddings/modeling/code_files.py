"""The code files inside a checkpoint: which its methods need, their hashes, and whether they are what was shipped."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

# How the files in this folder import each other, and how `modeling_compact` imports the methods.
_IMPORT = re.compile(r"^\s*from \.(\w+) import ", re.MULTILINE)
_METHOD_IMPORT = re.compile(r"^from \.structure_(\w+) import .*\n", re.MULTILINE)


def shipped_files(module_file: str | Path, methods: Iterable[str]) -> dict[str, bytes]:
    """Return the files that a checkpoint with these methods needs, by name.

    They are the module file, without the import lines of other methods, and all that it imports from its folder.
    """
    needed = set(methods)
    start = Path(module_file)
    found: dict[str, bytes] = {}
    waiting = [start]
    while waiting:
        file = waiting.pop()
        if file.name in found:
            continue
        text = file.read_text(encoding="utf-8")
        if file == start:
            text = _METHOD_IMPORT.sub(lambda line: line[0] if line[1] in needed else "", text)
        found[file.name] = text.encode()
        waiting += [file.with_name(f"{name}.py") for name in _IMPORT.findall(text)]
    return dict(sorted(found.items()))


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


def _listing(hashes: dict[str, str]) -> str:
    return "".join(f"{hashes[name]}  {name}\n" for name in sorted(hashes))


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
