r"""Sentence similarity of all-MiniLM-L6-v2 with compact tables, before any training, at several sizes.

    python -m benchmarks.frontier.sts --texts wikitext2/train.txt reviews.txt \
        --pairs stsb/en/validation.jsonl stsb/en/test.jsonl --output benchmarks/frontier/results/sts.json

The files are text, a text a line, and JSON lines with the columns of the STS benchmark. Settings were chosen on the
validation file. Prints a table, and writes JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from transformers import AutoModel, AutoTokenizer

import hf_compact_embeddings as hce

from ..common.library import compress_within, count_tokens, find_model, sts_score
from ..common.record import layout, read_lines, read_rows, write
from ..common.texts import one_sentence_of_each_line


def settings() -> list[tuple[str, dict[str, Any]]]:
    """Return methods and options to measure; ratios are of all bytes to the table in float32."""

    def rotated(ratio: int, **options: Any) -> tuple[str, dict[str, Any]]:
        return "rotated", {"ratio": ratio, "metric": "sensitivity", **options}

    return [
        ("scalar", {"bits": 8}),
        ("scalar", {"bits": 4}),
        ("scalar", {"bits": 4, "group_size": 32}),
        ("subspace", {"num_subspaces": 48, "frequency_power": 0.75}),
        ("subspace", {"num_subspaces": 8, "frequency_power": 0.75}),
        rotated(25, axis_power=0.5),
        rotated(97),
        rotated(150),
        rotated(500, tiers=2),
        *(rotated(ratio, clusters=512) for ratio in (150, 500)),
        *(("blocks", {"ratio": ratio, "metric": "sensitivity"}) for ratio in (25, 97, 150, 500)),
    ]


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
    source = find_model(options.model)
    tokenizer, dense = AutoTokenizer.from_pretrained(source), AutoModel.from_pretrained(source)
    weight = dense.get_input_embeddings().weight
    counts = count_tokens((line for path in options.texts for line in read_lines(path)), tokenizer, len(weight))
    sentences = one_sentence_of_each_line(options.texts)
    pairs = {Path(path).stem: read_rows(path) for path in options.pairs}
    results: list[dict[str, Any]] = [
        {"method": "dense", **{name: sts_score(dense, tokenizer, rows) for name, rows in pairs.items()}}
    ]
    for method, given in settings():
        started = time.process_time()
        compact = compress_within(dense, method, given, tokenizer, token_counts=counts, texts=sentences)
        seconds = time.process_time() - started
        report = hce.inspect(compact, against=dense)
        scores = {name: sts_score(compact, tokenizer, rows) for name, rows in pairs.items()}
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
    print(layout(header, rows))
    if options.output:
        write(options.output, results)


if __name__ == "__main__":
    main()
