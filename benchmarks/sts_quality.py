r"""Sentence similarity of all-MiniLM-L6-v2 with compact tables, before any training, at several sizes.

    python benchmarks/sts_quality.py --texts wikitext2/train.txt reviews.txt \
        --pairs stsb/en/validation.jsonl stsb/en/test.jsonl --output benchmarks/results/sts_quality.json

The files are text, a text a line, and JSON lines with the columns of the STS benchmark. Settings were chosen on the
validation file. Prints a table, and writes JSON.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import re
import sys
import time
from pathlib import Path

from record import read_lines, read_rows, write
from transformers import AutoModel, AutoTokenizer

import hf_compact_embeddings as hce
from hf_compact_embeddings.cli.demo import find_model
from hf_compact_embeddings.cli.outcome import table
from hf_compact_embeddings.evaluation.sts import sts_spearman
from hf_compact_embeddings.evidence.frequencies import count_tokens
from hf_compact_embeddings.planning import stored_bytes_of_private_rows

_KEPT_ROWS = 5
_LINES_PER_FILE = 4000


def settings(values: int, width: int) -> list[hce.StructureConfig]:
    """Return the configurations to measure, for a table of so many values."""

    def budget(ratio: int) -> int:
        return values * 4 // ratio - stored_bytes_of_private_rows(width, _KEPT_ROWS)

    def rotated(ratio: int, **options: object) -> hce.StructureConfig:
        return hce.RotatedConfig(max_bytes=budget(ratio), metric="sensitivity", **options)

    return [
        hce.ScalarConfig(bits=8),
        hce.ScalarConfig(bits=4),
        hce.ScalarConfig(bits=4, group_size=32),
        hce.SubspaceConfig(num_subspaces=48, frequency_power=0.75),
        hce.SubspaceConfig(num_subspaces=8, frequency_power=0.75),
        rotated(25, axis_power=0.5),
        rotated(97),
        rotated(150),
        rotated(500, tiers=2),
        *(rotated(ratio, clusters=512) for ratio in (150, 500)),
        *(hce.BlocksConfig(max_bytes=budget(ratio), metric="sensitivity") for ratio in (25, 97, 150, 500)),
    ]


def sentences_of(paths: list[str], seed: int = 0) -> list[str]:
    """Return one sentence of each of the first long lines of some files, as a sentence encoder sees them."""
    choice = random.Random(seed)
    lines = [
        line
        for path in paths
        for line in itertools.islice((x for x in read_lines(path) if len(x) > 80), _LINES_PER_FILE)
    ]
    choice.shuffle(lines)
    cut = ([part for part in re.split(r"(?<=[.!?]) ", line) if 20 < len(part) < 300] for line in lines)
    return [choice.choice(parts) for parts in cut if parts]


def main() -> None:
    """Measure every setting."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--texts", nargs="+", required=True, help="text to count tokens in and to measure sensitivity on"
    )
    parser.add_argument("--pairs", nargs="+", required=True, help="files of sentence pairs with scores")
    parser.add_argument("--model", help="folder or Hub id; by default the demo's")
    parser.add_argument("--output", help="JSON file to write")
    options = parser.parse_args()
    source = options.model or find_model()
    tokenizer, dense = AutoTokenizer.from_pretrained(source), AutoModel.from_pretrained(source)
    weight = dense.get_input_embeddings().weight
    counts = count_tokens((line for path in options.texts for line in read_lines(path)), tokenizer, len(weight))
    sentences = sentences_of(options.texts)
    pairs = {Path(path).stem: read_rows(path) for path in options.pairs}
    results = [{"method": "dense", **{name: sts_spearman(dense, tokenizer, rows) for name, rows in pairs.items()}}]
    for config in settings(weight.numel(), weight.shape[1]):
        started = time.process_time()
        compact = hce.compress(dense, config, token_counts=counts, texts=sentences, tokenizer=tokenizer)
        seconds = time.process_time() - started
        report = hce.inspect(compact, against=dense)
        scores = {name: sts_spearman(compact, tokenizer, rows) for name, rows in pairs.items()}
        results.append({"cpu_seconds": round(seconds, 1), **scores, **report.to_dict()})
        print(json.dumps({"method": report.method, "ratio": report.ratio, **scores}), file=sys.stderr, flush=True)
    header = ["method", "ratio", "bytes", "relative MSE", "above the bound", *pairs]
    rows = [
        [result["method"], "1.0x", f"{weight.nbytes:,}", "-", "-", *(f"{result[name]:.2f}" for name in pairs)]
        for result in results[:1]
    ]
    for result in results[1:]:
        cells = [
            f"{result['ratio']:.1f}x",
            f"{result['compact_bytes']:,}",
            f"{result['relative_mse']:.4f}",
            f"{result['gap_db']:.2f} dB",
        ]
        rows.append([result["method"], *cells, *(f"{result[name]:.2f}" for name in pairs)])
    print(table(header, rows))
    if options.output:
        write(options.output, results)


if __name__ == "__main__":
    main()
