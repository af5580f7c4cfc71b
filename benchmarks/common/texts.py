"""Texts as the benchmarks read them."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from .record import read_lines, read_rows

_LINES_OF_A_FILE = 4000


def texts_of(path: str | Path, tokenizer: PreTrainedTokenizerBase | None = None) -> Iterator[str]:
    """Yield the lines of a text file, or the texts in the rows of JSON lines.

    WikiText writes words that it left out as `<unk>`: a masked LM reads them as its tokenizer's own.
    """
    path = Path(path)
    unknown = "<unk>" if tokenizer is None or tokenizer.unk_token is None else tokenizer.unk_token
    if path.suffix == ".jsonl":
        for row in read_rows(path):
            yield from (value for value in row.values() if isinstance(value, str))
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        yield from (text.replace("<unk>", unknown) for line in file if (text := line.strip()))


def one_sentence_of_each_line(paths: Sequence[str | Path], seed: int = 0) -> list[str]:
    """Return one sentence of each of the first long lines of some files."""
    choice = random.Random(seed)
    lines = [line for path in paths for line in [x for x in read_lines(path) if len(x) > 80][:_LINES_OF_A_FILE]]
    choice.shuffle(lines)
    cut = ([part for part in re.split(r"(?<=[.!?]) ", line) if 20 < len(part) < 300] for line in lines)
    return [choice.choice(parts) for parts in cut if parts]
