"""Where the long runs write their figures: sections of docs/reliability.md between two marks."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..tools import REPOSITORY

_PAGE = REPOSITORY / "docs" / "reliability.md"


def write_section(name: str, lines: Sequence[str]) -> None:
    """Put lines in the place of those of the last run."""
    start, end = f"<!-- {name}: written by the run itself -->", f"<!-- end of {name} -->"
    page = _PAGE.read_text(encoding="utf-8")
    section = "\n".join((start, *lines, end))
    changed, count = re.subn(re.escape(start) + ".*" + re.escape(end), lambda _: section, page, flags=re.DOTALL)
    assert count == 1, f"{_PAGE} has no section {name!r}"
    _PAGE.write_text(changed, encoding="utf-8")
