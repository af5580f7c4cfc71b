"""Runs at the start of each client process of the tests (its folder is first on PYTHONPATH).

`HUB_TEST_HIDDEN_PACKAGES` names packages, with commas between, that cannot be imported in this process.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


class Hider(MetaPathFinder):
    """Makes packages look as if they were not installed."""

    def __init__(self, names: frozenset[str]) -> None:
        self.names = names

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname.split(".")[0] in self.names:
            raise ModuleNotFoundError(f"No module named {fullname!r}", name=fullname)
        return None


if hidden := os.environ.get("HUB_TEST_HIDDEN_PACKAGES"):
    sys.meta_path.insert(0, Hider(frozenset(hidden.split(","))))
