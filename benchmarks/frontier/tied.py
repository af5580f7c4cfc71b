r"""How far a model's predictions move when its table is compact, which is its head too: with one call, and with peers.

    python -m benchmarks.frontier.tied --model smollm2-135m-instruct --texts wikitext2/train.txt \
        --held-out wikitext2/valid.txt --output benchmarks/frontier/results/tied_smollm2.json

    python -m benchmarks.frontier.tied --model smollm2-135m-instruct --texts wikitext2/train.txt --minutes 15 \
        --threads 1 --held-out wikitext2/valid.txt --no-peers --output benchmarks/frontier/results/tied_calibrated.json

Ours are `hce.compress(model, ratio=…, tokenizer=tokenizer, texts=…)`, without any training unless `--minutes` says how
long the whole call may take with `effort="best"`; with `--without-texts` also without texts. The other libraries'
tables stand on both sides too, at their own bytes. All ratios are to float32.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

import hf_compact_embeddings as hce

from ..common.library import Predictions, predictions
from ..common.record import layout, write
from ..common.texts import texts_of
from .peers import Fitted, Task, fit_peer, missing, opq_settings

_FLOAT32_BITS = 32
# Name, library, options.
_PEERS: list[tuple[str, str, dict[str, Any]]] = [
    ("TorchAO int8, a scale a row", "torchao", {"method": "intx", "bits": 8}),
    ("GGUF Q8_0", "gguf", {"method": "gguf", "type": "Q8_0"}),
    ("TorchAO int4, groups of 32", "torchao", {"method": "intx", "bits": 4, "group": 32}),
    ("GGUF Q4_0", "gguf", {"method": "gguf", "type": "Q4_0"}),
    ("bitsandbytes NF4", "bitsandbytes", {"method": "block", "levels": "nf4"}),
    ("int4, a scale a row", "numpy", {"method": "rows", "bits": 4}),
    ("int2, a scale a row", "numpy", {"method": "rows", "bits": 2}),
]


def main() -> None:
    """Measure every setting."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", required=True, help="folder or Hub id of a model with a tied head, causal or masked")
    parser.add_argument("--texts", nargs="+", required=True, help="text files to compress with")
    parser.add_argument("--held-out", required=True, help="text file for the predictions")
    parser.add_argument("--tokens", type=int, default=20_480, help="of it, from its beginning")
    parser.add_argument("--ratios", type=float, nargs="*", default=[3.9, 8, 16, 25, 50])
    parser.add_argument(
        "--without-texts", type=float, nargs="*", default=[], help="ratios to compress at without texts"
    )
    parser.add_argument("--minutes", type=float, help="calibrate, within so many minutes of the whole call")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--opq", type=float, nargs="*", default=[], help="ratios for faiss's product codes")
    parser.add_argument("--no-peers", action="store_true", help="leave the other libraries out")
    parser.add_argument("--output", help="JSON file to write")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    effort = {} if options.minutes is None else {"effort": "best", "minutes": options.minutes, "verbose": True}
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    dense = _load(options.model)
    held_out = list(first_tokens(options.held_out, tokenizer, options.tokens))
    results: list[dict[str, Any]] = []

    def add(name: str, model: PreTrainedModel, ratio: float, seconds: float, **more: Any) -> None:
        found = predictions([dense, model], tokenizer, held_out)
        results.append({"name": name, "ratio": round(ratio, 2), "seconds": round(seconds, 1), **row_of(found), **more})
        print(json.dumps(results[-1]), file=sys.stderr, flush=True)
        if options.output:
            write(options.output, results, held_out=Path(options.held_out).name, tokens=found.tokens)

    for given in [("texts", ratio) for ratio in options.ratios] + [("no data", one) for one in options.without_texts]:
        evidence, ratio = given
        texts = {"texts": options.texts} if evidence == "texts" else {}
        began = time.perf_counter()
        compact = hce.compress(dense, ratio=ratio, tokenizer=tokenizer, **texts, **effort)
        seconds = time.perf_counter() - began
        report = hce.inspect(compact)
        more = {"options": report.options, "bytes": report.compact_bytes, "evidence": report.evidence}
        if effort:
            more["calibration"] = compact.config.compact_source["calibration"]
        add(f"ours, {evidence}{', calibrated' if effort else ''}", compact, report.ratio, seconds, **more)
    if not options.no_peers:
        for name, ratio, model, seconds in _peers(dense, options.opq):
            add(name, model, ratio, seconds)
    print(layout(["table", "ratio", "bits", "perplexity over dense", "KL", "same top token"], _cells(results)))


def _load(source: str) -> PreTrainedModel:
    names = AutoConfig.from_pretrained(source).architectures or [""]
    auto_class = AutoModelForMaskedLM if "MaskedLM" in names[0] else AutoModelForCausalLM
    return auto_class.from_pretrained(source, dtype=torch.float32).eval()


def first_tokens(path: str, tokenizer: Tokenizer, tokens: int) -> Iterator[str]:
    """Yield the lines of a file until they have so many tokens."""
    # One piece more than asked for: what does not fill a piece is dropped.
    left = tokens + 512
    # Words that WikiText left out are the unknown token to a masked model; to a causal one that ends a text.
    for text in texts_of(path, tokenizer if tokenizer.mask_token else None):
        yield str(text)
        left -= len(tokenizer(str(text), add_special_tokens=False, verbose=False)["input_ids"])
        if left <= 0:
            return


def row_of(found: Predictions) -> dict[str, Any]:
    """Return what a record says of predictions."""
    dense, compact = found.perplexities
    known = {name: value for name, value in dataclasses.asdict(found).items() if value is not None}
    return {"over_dense": compact / dense, **known}


def _peers(dense: PreTrainedModel, opq: list[float]) -> Iterator[tuple[str, float, PreTrainedModel, float]]:
    """Yield each other library's name, its ratio, the model with its table, and the seconds that it took."""
    table = dense.get_input_embeddings().weight.detach().numpy()
    rows, width = table.shape
    settings = list(_PEERS)
    variances = np.linalg.eigvalsh(np.cov(table.T))
    for ratio in opq:
        best = opq_settings(rows, width, int(table.size * 4 / ratio), variances, 1)
        settings += [(f"faiss OPQ, {ratio:g}x", "faiss", one) for one in best]
    for name, library, given in settings:
        if reason := missing(library):
            print(f"{name}: left out, {reason}", file=sys.stderr)
            continue
        began = time.perf_counter()
        fitted: Fitted = fit_peer(Task(table, given))
        model = copy.deepcopy(dense)
        with torch.no_grad():
            model.get_input_embeddings().weight.copy_(torch.from_numpy(np.ascontiguousarray(fitted.decode())))
        yield name, table.size * 4 / fitted.num_bytes, model, time.perf_counter() - began


def _cells(results: list[dict[str, Any]]) -> list[list[str]]:
    return [
        [
            row["name"],
            f"{row['ratio']:.1f}x",
            f"{_FLOAT32_BITS / row['ratio']:.2f}",
            f"{row['over_dense']:.4f}",
            f"{row['kl']:.4f}",
            f"{100 * row['top1_agreement']:.1f} %",
        ]
        for row in results
    ]


if __name__ == "__main__":
    main()
