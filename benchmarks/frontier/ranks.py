r"""What a tokenizer's order of its tokens tells of how often they occur: the constants of the law in `frequencies`.

    python -m benchmarks.frontier.ranks --tokenizers smollm2-135m-instruct --texts wikitext2/train.txt reviews.txt \\
        --output benchmarks/frontier/results/ranks.json

A token of rank r gets a share in proportion to (r + offset)^-exponent, and single characters that of one rank. Every
constant is tried with every other. What counts is the cross-entropy of the tokens of real texts under these shares, in
bits a token, on average over the tokenizers; `floor` is the entropy of the counts themselves.
"""

from __future__ import annotations

import argparse
import itertools
import json
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer

from ..common.library import RANK_OF_CHARACTERS, count_tokens, find_model, ranks_of_tokens
from ..common.record import layout, write
from ..common.texts import texts_of

_EXPONENTS = (0.9, 0.95, 1.0, 1.05, 1.1)
_OFFSETS = (3.0, 10.0, 30.0, 100.0)
_RANKS_OF_CHARACTERS = (100.0, 200.0, 500.0, 1000.0, 3000.0)
_SHOWN = 10


def main() -> None:
    """Count, try all constants, and show the best."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tokenizers", nargs="*", default=[], help="folders or Hub ids, beside the demo's model")
    parser.add_argument("--texts", nargs="+", required=True, help="text files, or JSON lines")
    parser.add_argument("--every", type=int, default=3, help="read every n-th line only")
    parser.add_argument("--output", help="JSON file to write")
    options = parser.parse_args()
    texts = [text for path in options.texts for text in texts_of(path)][:: options.every]
    counted = [_counted(source, texts) for source in [find_model(), *options.tokenizers]]
    results: list[dict[str, Any]] = []
    for exponent, offset, characters in itertools.product(_EXPONENTS, _OFFSETS, _RANKS_OF_CHARACTERS):
        bits = [_cross_entropy(counts, ranks, exponent, offset, characters) for counts, ranks in counted]
        row = {"exponent": exponent, "offset": offset, "rank_of_characters": characters}
        results.append({**row, "bits": [round(value, 3) for value in bits], "mean": round(sum(bits) / len(bits), 3)})
    results.sort(key=lambda row: row["mean"])
    floors = [round(_entropy(counts), 3) for counts, _ in counted]
    cells = [[str(row[key]) for key in results[0]] for row in results[:_SHOWN]]
    print(layout([key.replace("_", " ") for key in results[0]], cells))
    print(f"floor: {floors}")
    if options.output:
        write(options.output, [{"floor": floors}, *results])


def _counted(source: str, texts: list[str]) -> tuple[Tensor, Tensor]:
    """Return how often a tokenizer's tokens occur (n,), and their ranks (n,), of those that it gives a rank."""
    tokenizer = AutoTokenizer.from_pretrained(source)
    counts = count_tokens(texts, tokenizer, len(tokenizer))
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    ids, ranks = zip(*((model["vocab"][token], rank) for token, rank in ranks_of_tokens(model).items()), strict=True)
    return counts[torch.tensor(ids)], torch.tensor(ranks, dtype=torch.float64)


def _cross_entropy(counts: Tensor, ranks: Tensor, exponent: float, offset: float, characters: float) -> float:
    """Return the bits that a token takes under the law."""
    ranks = torch.where(ranks == RANK_OF_CHARACTERS, characters, ranks)
    shares = (ranks + offset) ** -exponent
    return float(-(counts / counts.sum() * (shares / shares.sum()).log2()).sum())


def _entropy(counts: Tensor) -> float:
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * shares.log2()).sum())


if __name__ == "__main__":
    main()
