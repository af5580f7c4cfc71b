r"""What one call gives without options: sentence similarity with compact tables, without any data and with texts.

    python -m benchmarks.frontier.defaults --pairs en=stsb/en/test.jsonl \
        --output benchmarks/frontier/results/defaults.json
    python -m benchmarks.frontier.defaults --model multilingual-e5-small --prefix "query: " --every 3 \
        --pairs en=stsb/en/test.jsonl de=stsb/de/test.jsonl --languages en de \
        --output benchmarks/frontier/results/defaults_e5.json

Every table is `hce.compress(model, ratio=…, tokenizer=tokenizer)`; with `--languages` and with `--texts`, these are
given, too. The files are JSON lines with the columns of the STS benchmark. Times are of the whole call on an idle
machine.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import Any

from transformers import AutoModel, AutoTokenizer

import hf_compact_embeddings as hce

from ..common.library import find_model, sts_score
from ..common.record import layout, read_rows, write

_TEXT_COLUMNS = ("sentence1", "sentence2")


def main() -> None:
    """Compress at each ratio, and score."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", help="folder or Hub id; by default the demo's")
    parser.add_argument("--prefix", default="", help="what the model reads before every sentence")
    parser.add_argument("--pairs", nargs="+", required=True, metavar="NAME=FILE", help="pairs of sentences with scores")
    parser.add_argument("--every", type=int, default=1, help="score every n-th pair only")
    parser.add_argument("--languages", nargs="+", metavar="CODE", help="languages to name, too")
    parser.add_argument("--texts", nargs="+", help="texts to compress with, too")
    parser.add_argument("--ratios", type=float, nargs="+", default=[25, 100, 500])
    parser.add_argument("--output", help="JSON file to write")
    options = parser.parse_args()
    source = find_model(options.model)
    tokenizer, dense = AutoTokenizer.from_pretrained(source), AutoModel.from_pretrained(source)
    pairs = {}
    for name, _, path in (given.partition("=") for given in options.pairs):
        rows = read_rows(path)[:: options.every]
        pairs[name] = [row | {column: options.prefix + row[column] for column in _TEXT_COLUMNS} for row in rows]

    def scores(model: Any) -> dict[str, float]:
        return {name: round(sts_score(model, tokenizer, rows), 2) for name, rows in pairs.items()}

    results: list[dict[str, Any]] = [{"ratio": 1.0, "given": "dense", "scores": scores(dense)}]
    beside = {"languages": options.languages, "texts": options.texts}
    for name in ("nothing", *(name for name, value in beside.items() if value)):
        for ratio in options.ratios:
            started = time.perf_counter()
            given = {name: beside[name]} if name in beside else {}
            compact = hce.compress(dense, ratio=ratio, tokenizer=tokenizer, **given)
            seconds = round(time.perf_counter() - started, 1)
            report = hce.inspect(compact, against=dense)
            results.append(
                {
                    "ratio": ratio,
                    "given": name,
                    "seconds": seconds,
                    "scores": scores(compact),
                    "bytes": report.compact_bytes,
                    "evidence": report.evidence,
                    "options": report.options["options"],
                }
            )
            print(json.dumps({"ratio": ratio, **results[-1]["scores"]}), file=sys.stderr, flush=True)
    cells = [
        [
            f"{row['ratio']:g}x",
            row["given"],
            f"{row.get('seconds', 0):g}",
            *(f"{row['scores'][key]:.2f}" for key in pairs),
        ]
        for row in results
    ]
    print(layout(["ratio", "given", "seconds", *pairs], cells))
    if options.output:
        write(options.output, results)


if __name__ == "__main__":
    main()
