r"""What calibration makes of a compact table that is a causal model's head too, in a number of steps.

    python -m benchmarks.frontier.tied_calibrated --model smollm2-135m-instruct --ratios 25 --steps 60 --threads 1 \
        --texts wikitext2/train.txt reviews.txt --learn wikitext2/train.txt --held-out wikitext2/valid.txt \
        --output benchmarks/frontier/results/tied_calibrated.json

The fit is `hce.compress(model, ratio=…, tokenizer=tokenizer, texts=…)`, or read from a folder of `--fits`. It is then
calibrated as `effort="best"` does it, with the same losses, rates and kinds of weights, but for so many steps, so that
the figures do not depend on what else the machine does; the seconds are those of the processor.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import random
import sys
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

import hf_compact_embeddings as hce

from ..common.library import fast_products, predictions, recipe_for
from ..common.record import layout, read_lines, write
from .tied import first_tokens, row_of

_LEARNED_LINES = 4000


def main() -> None:
    """Fit or load, measure, calibrate, measure."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", required=True, help="folder or Hub id of a causal model with a tied head")
    parser.add_argument("--texts", nargs="*", help="text files to compress with")
    parser.add_argument("--learn", required=True, help="text file to calibrate on")
    parser.add_argument("--held-out", required=True, help="text file for the predictions")
    parser.add_argument("--tokens", type=int, default=20_480, help="of it, from its beginning")
    parser.add_argument("--ratios", type=float, nargs="*", default=[])
    parser.add_argument("--fits", nargs="*", default=[], help="folders of compact checkpoints, instead of new fits")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rates", type=float, nargs=2, help="learning rates of norms and table, instead of the usual")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--output", help="JSON file to write")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    dense = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32).eval()
    held_out = list(first_tokens(options.held_out, tokenizer, options.tokens))
    lines = random.Random(0).sample(read_lines(options.learn), _LEARNED_LINES)
    results: list[dict[str, Any]] = []

    def add(name: str, model: PreTrainedModel, seconds: float, **more: Any) -> None:
        found = predictions([dense, model], tokenizer, held_out)
        ratio = round(hce.inspect(model).ratio, 2)
        results.append({"name": name, "ratio": ratio, "seconds": round(seconds, 1), **row_of(found), **more})
        print(json.dumps(results[-1]), file=sys.stderr, flush=True)
        if options.output:
            write(options.output, results, held_out=Path(options.held_out).name, tokens=found.tokens)

    for source in [*options.fits, *options.ratios]:
        began = time.process_time()
        if isinstance(source, str):
            compact = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
        else:
            compact = hce.compress(dense, ratio=source, tokenizer=tokenizer, texts=options.texts)
        fit, seconds = copy.deepcopy(compact), time.process_time() - began
        recipe = recipe_for(compact)
        if options.rates:
            rate, table_rate = options.rates
            recipe = dataclasses.replace(recipe, learning_rate=rate, table_learning_rate=table_rate)
        began = time.process_time()
        with fast_products(torch.device("cpu")):
            calibrate(compact, dense, tokenizer, lines, recipe, options.steps)
        spent, noted = time.process_time() - began, compact.config.compact_source["calibration"]
        add("calibrated", compact, spent, calibration=noted)
        add("fit", fit, seconds)
    columns = ["table", "ratio", "perplexity over dense", "KL"]
    cells = [[one["name"], f"{one['ratio']:g}x", f"{one['over_dense']:.4f}", f"{one['kl']:.4f}"] for one in results]
    print(layout(columns, cells))


def calibrate(
    compact: PreTrainedModel, dense: PreTrainedModel, tokenizer: Any, lines: list[str], recipe: Any, steps: int
) -> None:
    """Calibrate as the recipe says."""
    hce.calibrate(
        compact,
        teacher=dense,
        tokenizer=tokenizer,
        texts=lines,
        losses=recipe.losses,
        trains=recipe.trains,
        max_length=recipe.max_length,
        table_learning_rate=recipe.table_learning_rate,
        args={
            "max_steps": steps,
            "per_device_train_batch_size": recipe.batch,
            "learning_rate": recipe.learning_rate,
            "lr_scheduler_type": "linear",
            "warmup_steps": steps // 10,
            "use_cpu": True,
            "logging_steps": 5,
            "report_to": "none",
            "seed": 0,
        },
    )


if __name__ == "__main__":
    main()
