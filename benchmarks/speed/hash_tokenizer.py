"""Measure how many words a second `CompactHashTokenizer` encodes, on one thread.

    python -m benchmarks.speed.hash_tokenizer TEXT.txt

"running text" starts with an empty cache and encodes the whole file, as the first epoch does; "again" encodes it
a second time; "new words" encodes every distinct word once, so that nothing comes from the cache. A call encodes
`--batch-size` lines with special tokens, attention mask, offsets and word ids. Seconds are those that the process
had a core to itself (CPU time of its one thread); of several runs the fastest counts.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

for _library in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_library, "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch  # noqa: E402

import hf_compact_embeddings as hce  # noqa: E402


def main() -> None:
    """Measure what the command line asks for, and print a table, or one JSON object."""
    parser = argparse.ArgumentParser(description="Words a second of the tokenizer without a vocabulary.")
    parser.add_argument("text", type=Path, help="a text file in UTF-8")
    parser.add_argument("--batch-size", type=int, default=1000, help="lines in a call")
    parser.add_argument("--max-lines", type=int, help="read no more lines than these")
    parser.add_argument("--repeat", type=int, default=3, help="runs, of which the fastest counts")
    parser.add_argument("--subword-tokenizer", help="a tokenizer.json: measure LSH over its subwords too")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    lines = [line for line in arguments.text.read_text(encoding="utf-8").splitlines() if line.strip()]
    lines = lines[: arguments.max_lines]
    results = {}
    for name, options in _tokenizers(arguments.subword_tokenizer).items():
        results[name] = _speeds(options, lines, arguments.batch_size, arguments.repeat)
    if arguments.json:
        print(json.dumps(results))
        return
    print(f"{'':12}{'words':>12}{'distinct':>10}{'running text/s':>16}{'again/s':>12}{'new words/s':>14}")
    for name, row in results.items():
        print(
            f"{name:12}{row['words']:12,.0f}{row['distinct']:10,.0f}{row['running_text']:16,.0f}"
            f"{row['again']:12,.0f}{row['new_words']:14,.0f}"
        )


def _tokenizers(subword_tokenizer: str | None) -> dict[str, dict[str, Any]]:
    """Return the options of every tokenizer that is measured."""
    tokenizers: dict[str, dict[str, Any]] = {"md": {"hashing": "md"}, "lsh": {"hashing": "lsh"}}
    if subword_tokenizer:
        tokenizers["lsh subwords"] = {"hashing": "lsh", "subword_tokenizer": subword_tokenizer}
    return tokenizers


def _speeds(options: dict[str, Any], lines: Sequence[str], batch_size: int, repeat: int) -> dict[str, float]:
    """Return how many words there are, and words a second in each situation."""
    splitter = hce.CompactHashTokenizer()
    distinct = sorted({token for line in lines for token in splitter.tokenize(line)})
    distinct_lines = [" ".join(distinct[start : start + 100]) for start in range(0, len(distinct), 100)]
    first, again, new = [], [], []
    words = 0
    for _ in range(repeat):
        tokenizer = hce.CompactHashTokenizer(**options)
        fresh = hce.CompactHashTokenizer(**options)
        words, seconds = _encode(tokenizer, lines, batch_size)
        first.append(seconds)
        again.append(_encode(tokenizer, lines, batch_size)[1])
        new.append(_encode(fresh, distinct_lines, batch_size)[1])
    return {
        "words": words,
        "distinct": len(distinct),
        "running_text": words / min(first),
        "again": words / min(again),
        "new_words": len(distinct) / min(new),
    }


def _encode(tokenizer: hce.CompactHashTokenizer, lines: Sequence[str], batch_size: int) -> tuple[int, float]:
    """Encode all lines; return the number of their words, and the seconds that took."""
    words = 0
    seconds = 0.0
    for start in range(0, len(lines), batch_size):
        started = time.process_time()
        batch = tokenizer(lines[start : start + batch_size], return_offsets_mapping=True)
        seconds += time.process_time() - started
        words += sum(len(ids) - 2 for ids in batch["input_ids"])
    return words, seconds


if __name__ == "__main__":
    main()
