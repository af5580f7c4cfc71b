"""Folders that are written before what is in them is moved to where it belongs, all of it or nothing.

A run that is killed leaves its draft behind; the next one that writes to the same place sees that its process is gone.
"""

from __future__ import annotations

import contextlib
import glob
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

SUFFIX = ".draft"


@contextlib.contextmanager
def draft_folder(parent: str | Path, name: str) -> Iterator[Path]:
    """Give a folder to write in that is gone afterwards, and remove those of runs of this name that were killed."""
    here = f"{platform.node() or 'here'}-"
    for left in Path(parent).glob(f".{glob.escape(name + '.' + here)}*{SUFFIX}"):
        if not _runs(left.name.removeprefix(f".{name}.{here}").partition("-")[0]):
            shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=parent, prefix=f".{name}.{here}{os.getpid()}-", suffix=SUFFIX) as scratch:
        yield Path(scratch)


@contextlib.contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """Give a folder to write in that becomes another one, absent or empty, when all of it is there: then or never."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with draft_folder(target.parent, target.name) as scratch:
        draft = scratch / "draft"
        draft.mkdir()
        yield draft
        if sys.platform == "win32" and target.exists():
            # Elsewhere an empty folder is replaced in one step.
            target.rmdir()
        draft.rename(target)


def _runs(process: str) -> bool:
    """Whether there is a process of this number; true where that cannot be known."""
    if sys.platform == "win32" or not process.isdecimal():
        return True
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        pass
    return True
