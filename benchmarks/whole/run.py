r"""Whole models in one small folder, with compact tables and layers: bytes, similarity or perplexity, and speed.

    python -m benchmarks.whole.run --pairs en=en/test.jsonl --output benchmarks/whole/results/minilm.json
    python -m benchmarks.whole.run --model multilingual-e5-small --prefix "query: " --every 3 \
        --pairs en=en/test.jsonl de=de/test.jsonl --languages en de --output benchmarks/whole/results/e5.json
    python -m benchmarks.whole.run --model smollm2-135m-instruct --lines wikitext2/test.txt \
        --texts wikitext2/train.txt --ratios 16 --output benchmarks/whole/results/smollm2.json

Every model is `hce.compress(model, ratio=…, layers=…, tokenizer=tokenizer)`, saved with its tokenizer. Speeds are those
of the best of several runs that alternate with the dense model's in one process, by the time of the processor, since
others may use the machine too. `--no-scores` measures these and bytes alone.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

import hf_compact_embeddings as hce

from ..common.library import find_model, perplexity, sts_score
from ..common.record import layout, read_rows, write

_TEXT_COLUMNS = ("sentence1", "sentence2")
_LAYERS = ("float32", "float16", "int8", "int4")
# Sentences that are encoded for the time, how many at once, and how often.
_TIMED, _BATCH, _RUNS = 128, 32, 5
_NEW_TOKENS = 16


class Judge:
    """Scores models on sentences or on running text, and times them beside the dense model."""

    def __init__(
        self, dense: PreTrainedModel, tokenizer: Any, pairs: dict[str, list[Any]], lines: list[str], scored: bool
    ) -> None:
        """Keep what is scored, if it is, and timed."""
        self.dense, self.tokenizer, self.pairs, self.lines, self.scored = dense, tokenizer, pairs, lines, scored
        texts = [row["sentence1"] for rows in pairs.values() for row in rows][:_TIMED] or lines[:1]
        size = _BATCH if pairs else 1
        starts = range(0, len(texts), size)
        self.batches = [
            tokenizer(texts[start : start + size], padding=True, return_tensors="pt", truncation=True, max_length=128)
            for start in starts
        ]

    def scores(self, model: PreTrainedModel) -> dict[str, float]:
        """Return the correlation for each language, or the perplexity."""
        if self.pairs:
            return {name: round(sts_score(model, self.tokenizer, rows), 2) for name, rows in self.pairs.items()}
        return {"perplexity": round(perplexity(model, self.tokenizer, self.lines), 3)}

    def speeds(self, model: PreTrainedModel) -> dict[str, float]:
        """Return how fast a model encodes sentences, or reads a text and writes on, relative to the dense one."""
        kinds = {"reading": self._encode, "writing": self._write}
        if self.pairs:
            kinds = {"encoding": self._encode, "one by one": self._encode_singly}
        found = {}
        for name, work in kinds.items():
            best = {"dense": float("inf"), "compact": float("inf")}
            for _ in range(_RUNS):
                for which, runner in (("dense", self.dense), ("compact", model)):
                    started = time.process_time()
                    work(runner)
                    best[which] = min(best[which], time.process_time() - started)
            found[name] = round(best["dense"] / best["compact"], 2)
        return found

    @torch.no_grad()
    def _encode(self, model: PreTrainedModel) -> None:
        for batch in self.batches:
            model(**batch)

    @torch.no_grad()
    def _encode_singly(self, model: PreTrainedModel) -> None:
        for row in range(self.batches[0]["input_ids"].shape[0]):
            model(**{name: value[row : row + 1] for name, value in self.batches[0].items()})

    def _write(self, model: Any) -> None:
        prompt = {name: value[:, :16] for name, value in self.batches[0].items()}
        model.generate(**prompt, max_new_tokens=_NEW_TOKENS, min_new_tokens=_NEW_TOKENS, do_sample=False)


def sizes(model: PreTrainedModel, tokenizer: Any) -> dict[str, int]:
    """Return the bytes of the weights, of the code and of all in a saved folder."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        files = {path.name: path.stat().st_size for path in Path(folder).iterdir()}
    code = sum(size for name, size in files.items() if name.endswith(".py"))
    return {"weights": files["model.safetensors"], "code": code, "folder": sum(files.values())}


def measure(model: PreTrainedModel, judge: Judge, ratio: float, layers: str, seconds: float) -> dict[str, Any]:
    """Return all figures of a model."""
    found = {"ratio": ratio, "layers": layers, "seconds": round(seconds, 1), "bytes": sizes(model, judge.tokenizer)}
    if model is not judge.dense:
        found["speed"] = judge.speeds(model)
    if judge.scored:
        found["scores"] = judge.scores(model)
    print(json.dumps(found), file=sys.stderr, flush=True)
    return found


def main() -> None:
    """Compress in all ways, and measure."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", help="folder or Hub id; by default the demo's")
    parser.add_argument("--prefix", default="", help="what the model reads before every sentence")
    parser.add_argument("--pairs", nargs="+", default=[], metavar="NAME=FILE", help="pairs of sentences with scores")
    parser.add_argument("--lines", metavar="FILE", help="text for a causal model's perplexity, instead of pairs")
    parser.add_argument("--characters", type=int, default=40_000, help="of that text")
    parser.add_argument("--every", type=int, default=1, help="score every n-th pair only")
    parser.add_argument("--languages", nargs="+", metavar="CODE", help="languages to name")
    parser.add_argument("--texts", nargs="+", help="texts to compress with")
    parser.add_argument("--ratios", type=float, nargs="+", default=[25, 100, 500])
    parser.add_argument("--layers", nargs="+", default=_LAYERS, help="float32 leaves them as they are")
    parser.add_argument("--threads", type=int, default=1, help="for all that is computed")
    parser.add_argument("--no-scores", action="store_true", help="measure bytes and speed alone")
    parser.add_argument("--output", help="JSON file to write")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    source = find_model(options.model)
    auto_class = AutoModelForCausalLM if options.lines else AutoModel
    tokenizer, dense = AutoTokenizer.from_pretrained(source), auto_class.from_pretrained(source, dtype=torch.float32)
    pairs = {}
    for name, _, path in (given.partition("=") for given in options.pairs):
        rows = read_rows(path)[:: options.every]
        pairs[name] = [row | {column: options.prefix + row[column] for column in _TEXT_COLUMNS} for row in rows]
    lines = [Path(options.lines).read_text(encoding="utf-8")[: options.characters]] if options.lines else []
    judge = Judge(dense, tokenizer, pairs, lines, not options.no_scores)
    results = [measure(dense, judge, 1.0, "float32", 0.0)]
    given = {"languages": options.languages, "texts": options.texts}
    beside = {name: value for name, value in given.items() if value}
    for ratio in options.ratios:
        started = time.perf_counter()
        # The same as with `layers=` at once, of which each would fit the table anew.
        table = hce.compress(dense, ratio=ratio, tokenizer=tokenizer, **beside)
        for layers in options.layers:
            compact = table
            if layers != "float32":
                started = time.perf_counter()
                compact = hce.compress(table, layers=layers, tokenizer=tokenizer, **beside)
            results.append(measure(compact, judge, ratio, layers, time.perf_counter() - started))
            if options.output:
                write(options.output, results)
    print(show(results))


def show(results: list[dict[str, Any]]) -> str:
    """Lay the results out as a table."""
    speeds = list(results[-1]["speed"])
    header = [
        "ratio",
        "layers",
        "weights MB",
        "folder MB",
        *results[0].get("scores", ()),
        *(f"{name}, x" for name in speeds),
    ]
    cells = [
        [
            f"{row['ratio']:g}x",
            row["layers"],
            f"{row['bytes']['weights'] / 1e6:.2f}",
            f"{row['bytes']['folder'] / 1e6:.2f}",
            *(f"{value:.2f}" for value in row.get("scores", {}).values()),
            *(f"{row['speed'][name]:.2f}" if "speed" in row else "" for name in speeds),
        ]
        for row in results
    ]
    return layout(header, cells)


if __name__ == "__main__":
    main()
