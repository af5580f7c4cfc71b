r"""Perplexity of a masked LM whose compact table is also its head, before any training, at several sizes.

    python -m benchmarks.frontier.masked_lm --model MLM_FOLDER --texts wikitext2/train.txt reviews.txt \
        --held-out wikitext2/valid.txt --output benchmarks/frontier/results/masked_lm.json

The texts, on which tokens are counted, are what the model was trained on. Prints a table, and writes JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer

import hf_compact_embeddings as hce

from ..common.library import compress_within, count_tokens, perplexity
from ..common.record import layout, write
from ..common.texts import texts_of

# All methods weigh errors alike here: what sensitivity brings is another question, which `tied` answers.
_PLAIN = {"metric": "plain", "frequency_power": 0.75, "axis_power": 1.0}
SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "scalar, 4 bits, groups of 32": ("scalar", {"bits": 4, "group_size": 32}),
    "rotated, powers 0.5 and 0.75": ("rotated", {"ratio": 25, **_PLAIN, "frequency_power": 0.5, "axis_power": 0.75}),
    "blocks": ("blocks", {"ratio": 25, **_PLAIN}),
    "subspace, f = 48": ("subspace", {"num_subspaces": 48, "frequency_power": 0.75}),
    "svd": ("factorized", {"fit": "svd", "ratio": 25, "int8_codes": True}),
    "autoencoder": ("factorized", {"fit": "autoencoder", "ratio": 25, "int8_codes": True}),
    "rotated, small": ("rotated", {"ratio": 97, **_PLAIN}),
    "blocks, small": ("blocks", {"ratio": 97, **_PLAIN}),
    "subspace, f = 8": ("subspace", {"num_subspaces": 8, "frequency_power": 0.75}),
    "svd, small": ("factorized", {"fit": "svd", "ratio": 97, "int8_codes": True}),
    "autoencoder, small": ("factorized", {"fit": "autoencoder", "ratio": 97, "int8_codes": True}),
    "dispersed, f = 2": ("subspace", {"num_subspaces": 2, "assignment": "dispersed"}),
}


def main() -> None:
    """Measure every setting."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", required=True, help="folder or Hub id of a masked LM with a tied head")
    parser.add_argument("--texts", nargs="+", required=True, help="text files to count tokens in")
    parser.add_argument("--held-out", required=True, help="text file for the perplexity")
    parser.add_argument("--every", type=int, default=1, help="read only every so many lines of it")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", help="JSON file to write")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    dense = AutoModelForMaskedLM.from_pretrained(options.model, dtype=torch.float32)
    texts = (text for path in options.texts for text in texts_of(path, tokenizer))
    counts = count_tokens(texts, tokenizer, dense.get_input_embeddings().num_embeddings)
    held_out = list(texts_of(options.held_out, tokenizer))[:: options.every]
    base = perplexity(dense, tokenizer, held_out)
    results = [{"setting": "dense", "ratio": 1.0, "perplexity": base, "over_dense": 1.0}]
    for setting, (method, given) in SETTINGS.items():
        compact = compress_within(dense, method, given, tokenizer, token_counts=counts)
        busy = time.process_time()
        found = perplexity(compact, tokenizer, held_out)
        report = hce.inspect(compact, against=dense).to_dict()
        seconds = round(time.process_time() - busy, 1)
        scores = {"perplexity": found, "over_dense": found / base, "cpu_seconds": seconds}
        results.append({"setting": setting, **scores, **report})
        print(json.dumps({"setting": setting, "ratio": report["ratio"], "perplexity": found}), file=sys.stderr)
        if options.output:
            write(options.output, results, held_out=Path(options.held_out).name, every=options.every)
    rows = [
        [str(one["setting"]), f"{one['ratio']:.1f}x", f"{one['perplexity']:.1f}", f"{one['over_dense']:.3f}"]
        for one in results
    ]
    print(layout(["setting", "ratio", "perplexity", "over dense"], rows))


if __name__ == "__main__":
    main()
