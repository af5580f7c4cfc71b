r"""What effort brings: the fit, and what `effort="best"` makes of it in some minutes, by the measure that counts.

    python -m benchmarks.frontier.effort --ratio 100 --minutes 6 --threads 1 --output results/effort_sts.json \
        --measure validation=DATA/stsb/en/validation.jsonl test=DATA/stsb/en/test.jsonl
    python -m benchmarks.frontier.effort --model MLM --ratio 25 --minutes 6 --threads 1 --every 4 \
        --measure valid=DATA/text/wikitext2/valid.txt --output results/effort_masked_lm.json

Files to measure on are JSON lines with the columns of the STS benchmark, or text for the perplexity of a language
model. Ratios are to the table as it was loaded. Times are of the whole call.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModel, AutoTokenizer

import hf_compact_embeddings as hce

from ..common.library import find_model, perplexity, sts_score
from ..common.record import layout, read_rows, write
from ..common.texts import texts_of


def main() -> None:
    """Compress with each effort, and measure."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", help="folder or Hub id; by default the demo's")
    parser.add_argument("--ratio", type=float, required=True)
    parser.add_argument("--efforts", nargs="+", default=["fast", "balanced", "best"])
    parser.add_argument("--minutes", type=float, help="that the best effort may take")
    parser.add_argument("--texts", nargs="+", help="texts to compress with; without them none are given")
    parser.add_argument("--measure", nargs="+", required=True, metavar="NAME=FILE")
    parser.add_argument("--every", type=int, default=1, help="measure on every n-th text or pair only")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--output", help="JSON file to write")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    source = find_model(options.model)
    tokenizer = AutoTokenizer.from_pretrained(source)
    files = dict(given.split("=", 1) for given in options.measure)
    pairs = all(path.endswith(".jsonl") for path in files.values())
    names = AutoConfig.from_pretrained(source).architectures
    loader = AutoModel if pairs else getattr(transformers, names[0])
    dense = loader.from_pretrained(source, dtype=torch.float32)

    def scores(model: Any) -> dict[str, float]:
        found = {}
        for name, path in files.items():
            if pairs:
                found[name] = sts_score(model, tokenizer, read_rows(path)[:: options.every])
            else:
                found[name] = perplexity(model, tokenizer, list(texts_of(path, tokenizer))[:: options.every])
        return {name: round(value, 3) for name, value in found.items()}

    results: list[dict[str, Any]] = [{"effort": "dense", "scores": scores(dense)}]
    for effort in options.efforts:
        given: dict[str, Any] = {"texts": options.texts} if options.texts else {}
        given |= {"minutes": options.minutes} if effort == "best" else {}
        started = time.perf_counter()
        compact = hce.compress(dense, ratio=options.ratio, tokenizer=tokenizer, effort=effort, verbose=True, **given)
        seconds = round(time.perf_counter() - started, 1)
        source_of_it = compact.config.compact_source
        report = hce.inspect(compact)
        results.append(
            {
                "effort": effort,
                "seconds": seconds,
                "scores": scores(compact),
                "bytes": report.compact_bytes,
                "method": source_of_it["method"],
                "options": source_of_it["options"],
                "calibration": source_of_it.get("calibration"),
            }
        )
        print(json.dumps(results[-1]), file=sys.stderr, flush=True)
        if options.output:
            write(options.output, results, ratio=options.ratio, model=Path(source).name)
    rows = [
        [one["effort"], f"{one.get('seconds', 0):g}", *(f"{value:.2f}" for value in one["scores"].values())]
        for one in results
    ]
    print(layout(["effort", "seconds", *files], rows))


if __name__ == "__main__":
    main()
