r"""Perplexity of a masked LM whose compact table is also its head, before any training, at several sizes.

    python benchmarks/mlm_perplexity.py --model MLM_FOLDER --texts wikitext2/train.txt reviews.txt \
        --held-out wikitext2/valid.txt --output benchmarks/results/mlm_perplexity.json

The texts, on which tokens are counted, are what the model was trained on. Prints a table, and writes JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import torch
from record import read_lines, write
from transformers import AutoModelForMaskedLM, AutoTokenizer, PreTrainedTokenizerBase

import hf_compact_embeddings as hce
from hf_compact_embeddings.cli.outcome import table
from hf_compact_embeddings.evaluation.perplexity import perplexity
from hf_compact_embeddings.evidence.frequencies import count_tokens
from hf_compact_embeddings.planning import stored_bytes_of_private_rows


def texts_of(paths: list[str], tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Read lines of text, in which WikiText writes words that it left out as `<unk>`."""
    unknown = tokenizer.unk_token or "<unk>"
    return [line.replace("<unk>", unknown) for path in paths for line in read_lines(path)]


def settings(dense_bytes: int, width: int, kept_rows: int) -> dict[str, hce.StructureConfig]:
    """Return the configurations to measure; budgets hold the rows that are kept exactly."""

    def budget(ratio: int) -> int:
        return dense_bytes // ratio - stored_bytes_of_private_rows(width, kept_rows)

    return {
        "scalar, 4 bits, groups of 32": hce.ScalarConfig(bits=4, group_size=32),
        "rotated, powers 0.5 and 0.75": hce.RotatedConfig(max_bytes=budget(25), frequency_power=0.5, axis_power=0.75),
        "blocks": hce.BlocksConfig(max_bytes=budget(25)),
        "subspace, f = 48": hce.SubspaceConfig(num_subspaces=48, frequency_power=0.75),
        "svd": hce.FactorizedConfig(fit="svd", max_bytes=budget(25), int8_codes=True),
        "autoencoder": hce.FactorizedConfig(fit="autoencoder", max_bytes=budget(25), int8_codes=True),
        "rotated, small": hce.RotatedConfig(max_bytes=budget(97)),
        "blocks, small": hce.BlocksConfig(max_bytes=budget(97)),
        "subspace, f = 8": hce.SubspaceConfig(num_subspaces=8, frequency_power=0.75),
        "svd, small": hce.FactorizedConfig(fit="svd", max_bytes=budget(97), int8_codes=True),
        "autoencoder, small": hce.FactorizedConfig(fit="autoencoder", max_bytes=budget(97), int8_codes=True),
        "dispersed, f = 2": hce.SubspaceConfig(num_subspaces=2, assignment="dispersed"),
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
    weight = dense.get_input_embeddings().weight
    counts = count_tokens(texts_of(options.texts, tokenizer), tokenizer, len(weight))
    held_out = texts_of([options.held_out], tokenizer)[:: options.every]
    base = perplexity(dense, tokenizer, held_out)
    results = [{"setting": "dense", "ratio": 1.0, "perplexity": base, "over_dense": 1.0}]
    for setting, config in settings(weight.nbytes, weight.shape[1], len(tokenizer.all_special_ids)).items():
        compact = hce.compress(dense, config, token_counts=counts, tokenizer=tokenizer)
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
    print(table(["setting", "ratio", "perplexity", "over dense"], rows))


if __name__ == "__main__":
    main()
