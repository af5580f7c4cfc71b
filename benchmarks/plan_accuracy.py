r"""plan() against full fits: what it predicts, what it takes; on a real table, and on a large one made here.

    python benchmarks/plan_accuracy.py --texts wikitext2/train.txt --output benchmarks/results/plan_accuracy.json

The model is all-MiniLM-L6-v2 (or --model). Every candidate of every budget is fitted in full, with token counts and
without. The large table has Gaussian rows with the spectrum of the model's, stretched to its width.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import Any

import torch
from record import read_lines, write
from torch import Tensor
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel, PreTrainedModel

import hf_compact_embeddings as hce
from hf_compact_embeddings.cli.demo import find_model
from hf_compact_embeddings.evidence.frequencies import count_tokens
from hf_compact_embeddings.fitting.spectrum import covariance

_RATIOS = (8, 25, 97, 500)


def main() -> None:
    """Plan, fit, compare."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", help="folder or Hub id; by default the demo's")
    parser.add_argument("--texts", nargs="+", required=True, help="text files to count tokens in")
    parser.add_argument("--ratios", type=float, nargs="+", default=_RATIOS)
    parser.add_argument("--large", type=int, nargs=2, default=(250_002, 768), metavar=("ROWS", "WIDTH"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", help="JSON file to write")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    source = options.model or find_model()
    model, tokenizer = AutoModel.from_pretrained(source), AutoTokenizer.from_pretrained(source)
    lines = [line for path in options.texts for line in read_lines(path)]
    counts = count_tokens(lines, tokenizer, model.get_input_embeddings().num_embeddings)
    budgets = [compare(model, ratio, given) for given in (counts, None) for ratio in options.ratios]
    large = time_plan(model.get_input_embeddings().weight.detach(), *options.large)
    print(json.dumps(large))
    if options.output:
        write(options.output, {"budgets": budgets, "large": large}, threads=options.threads)


def compare(model: PreTrainedModel, ratio: float, counts: Tensor | None) -> dict[str, Any]:
    """Plan for a ratio, fit every candidate in full, and say how far the prediction was off."""
    plans = hce.plan(model, ratio=ratio, token_counts=counts)
    rows = model.get_input_embeddings().weight.detach().double()
    weights = torch.ones(len(rows)).double() if counts is None else counts.double() + 1
    mean = (weights @ rows) / weights.sum()
    energy = float(weights @ (rows - mean).square().sum(1))
    found = []
    for plan in plans:
        structure = hce.compress(model, plan.config, token_counts=counts).compact_embedding
        with torch.no_grad():
            error = float(weights @ (structure.dense().double() - rows).square().sum(1)) / energy
        found.append(
            {
                "config": {key: value for key, value in plan.config.to_dict().items() if value is not None},
                "bytes_exact": plan.bytes == structure.nbytes,
                "predicted": plan.predicted_error,
                "fitted": error,
                "off_by": plan.predicted_error / error - 1,
            }
        )
    result = {
        "ratio": ratio,
        "weighted": counts is not None,
        "same_best": min(range(len(found)), key=lambda place: found[place]["fitted"]) == 0,
        "worst_off_by": max(abs(one["off_by"]) for one in found),
        "candidates": found,
    }
    shown = [(one["config"]["method"], round(one["fitted"], 4), f"{one['off_by']:+.1%}") for one in found]
    print(ratio, "weighted" if counts is not None else "plain", *shown, file=sys.stderr, flush=True)
    return result


def time_plan(table: Tensor, rows: int, width: int) -> dict[str, float]:
    """Plan for a large Gaussian table with Zipf's counts, and return what it took."""
    _, spread = covariance(table, torch.ones(len(table)))
    scales = torch.linalg.eigvalsh(spread).flip(0).clamp(min=0).sqrt().float()
    scales = torch.nn.functional.interpolate(
        scales[None, None], size=width, mode="linear", align_corners=True
    ).flatten()
    config = BertConfig(
        vocab_size=rows, hidden_size=width, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8
    )
    model = BertModel(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for chunk in model.get_input_embeddings().weight.split(8192):
            chunk.copy_(torch.randn(chunk.shape, generator=generator) * scales)
    started, busy = time.perf_counter(), time.process_time()
    plans = hce.plan(model, ratio=50, token_counts=1e6 / torch.arange(1.0, rows + 1))
    return {
        "rows": rows,
        "width": width,
        "candidates": len(plans),
        "seconds": round(time.perf_counter() - started, 1),
        "cpu_seconds": round(time.process_time() - busy, 1),
    }


if __name__ == "__main__":
    main()
