"""Texts as the benchmarks of sentence encoders read them."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from pathlib import Path

from .record import read_lines

_LINES_OF_A_FILE = 4000


def one_sentence_of_each_line(paths: Sequence[str | Path], seed: int = 0) -> list[str]:
    """Return one sentence of each of the first long lines of some files."""
    choice = random.Random(seed)
    lines = [line for path in paths for line in [x for x in read_lines(path) if len(x) > 80][:_LINES_OF_A_FILE]]
    choice.shuffle(lines)
    cut = ([part for part in re.split(r"(?<=[.!?]) ", line) if 20 < len(part) < 300] for line in lines)
    return [choice.choice(parts) for parts in cut if parts]
