"""What a verb hands back: data for `--json`, text for people."""

from __future__ import annotations

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The outcome of a verb.

    Attributes:
        data: plain JSON.
        text: the same for people.
    """

    data: dict[str, Any]
    text: str


def table(header: list[str], rows: list[list[str]]) -> str:
    """Lay out rows under a header; the first column to the left, the others to the right."""
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    lines = []
    for row in [header, ["-" * width for width in widths], *rows]:
        cells = [
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
