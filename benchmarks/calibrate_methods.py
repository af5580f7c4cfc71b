"""Every method at about the same size, calibrated alike for a few steps, on the STS benchmark.

    python benchmarks/calibrate_methods.py --texts reviews.txt wikitext2/train.txt --sts stsb/en \
        --work work/methods --output benchmarks/results/calibrate_methods.json

Tells how far each method is after its fit, and how much the same short training brings it: everything trains, at the
same rates, on the same sentences in the same order. Nothing is chosen: the last values count. A method that is done is
not done again, unless it was made with other settings, which ends the run; its folder in `--work` is a checkpoint with
its tokenizer, for finetune_glue.py.
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
from calibrate_minilm import sentences, texts_of
from processor import prepare
from record import read_rows, write
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

import hf_compact_embeddings as hce
from hf_compact_embeddings.cli.demo import find_model
from hf_compact_embeddings.evaluation.sts import sts_spearman
from hf_compact_embeddings.evidence.frequencies import count_tokens
from hf_compact_embeddings.planning import stored_bytes_of_private_rows

_KEPT_ROWS = 5
_SENTENCES_FOR_METRIC = 512
# What the methods of one table must have in common.
_SETTINGS = ("steps", "batch", "learning_rate", "table_learning_rate", "fp32", "seed", "most")


def settings(values: int, width: int) -> dict[str, hce.StructureConfig]:
    """Return the configurations to compare, for a table of so many values: 100x, but for what cannot have that."""
    budget = values * 4 // 100 - stored_bytes_of_private_rows(width, _KEPT_ROWS)
    return {
        "rotated": hce.RotatedConfig(max_bytes=budget, metric="sensitivity"),
        "blocks": hce.BlocksConfig(max_bytes=budget, metric="sensitivity"),
        "blocks, trained codebooks": hce.BlocksConfig(max_bytes=budget, metric="sensitivity", codebooks="float16"),
        "subspace, f = 8": hce.SubspaceConfig(num_subspaces=8, frequency_power=0.75),
        "svd": hce.FactorizedConfig(fit="svd", max_bytes=budget, int8_codes=True),
        "autoencoder": hce.FactorizedConfig(fit="autoencoder", max_bytes=budget, int8_codes=True),
        "dispersed, f = 2": hce.SubspaceConfig(num_subspaces=2, assignment="dispersed"),
        "dispersed, f = 3": hce.SubspaceConfig(num_subspaces=3, assignment="dispersed"),
    }


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", help="by default all-MiniLM-L6-v2, from the Hub or from PyPI")
    parser.add_argument(
        "--texts", nargs="+", required=True, help="as for calibrate_minilm.py; tokens are counted there"
    )
    parser.add_argument("--words", nargs=2, type=int, default=(3, 25), metavar=("LEAST", "MOST"), help="of a sentence")
    parser.add_argument("--most", type=int, help="sentences of a file")
    parser.add_argument("--sts", required=True, help="folder of the STS benchmark")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=2e-4)
    parser.add_argument("--table-learning-rate", type=float, default=0.02)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--fp32", action="store_true", help="no bfloat16 autocast")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, required=True, help="folder for the checkpoints")
    parser.add_argument("--output", required=True, help="JSON file to write")
    return parser.parse_args()


def main() -> None:
    """Fit, measure, calibrate, measure; write when all is done."""
    options = parse()
    prepare(options.threads)
    transformers.utils.logging.disable_progress_bar()
    source = options.model or find_model()
    tokenizer, dense = AutoTokenizer.from_pretrained(source), AutoModel.from_pretrained(source)
    pairs = {part: read_rows(Path(options.sts) / f"{part}.jsonl") for part in ("validation", "test")}
    weight = dense.get_input_embeddings().weight
    texts = sentences(options)
    counts = count_tokens((text for path in options.texts for text in texts_of(Path(path))), tokenizer, len(weight))
    rows = []
    shared = {name: getattr(options, name) for name in _SETTINGS}
    for name, config in settings(weight.numel(), weight.shape[1]).items():
        folder = options.work / name.replace(", ", "_").replace(" ", "")
        noted = folder / "scores.json"
        if not noted.exists():
            started = time.process_time()
            compact = hce.compress(
                dense,
                config,
                tokenizer=tokenizer,
                token_counts=counts,
                texts=texts[:_SENTENCES_FOR_METRIC],
                seed=options.seed,
            )
            found = measured(compact, dense, tokenizer, pairs, texts, options)
            found |= {"method": name, "cpu_seconds": round(time.process_time() - started)}
            compact.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            noted.write_text(json.dumps({"settings": shared, **found}))
            print(json.dumps(found), flush=True)
        row = json.loads(noted.read_text())
        if row.pop("settings", None) != shared:
            sys.exit(f"{noted} was made with other settings: take another folder for --work")
        rows.append(row)
    print("\n".join(lines(rows)))
    seen = {"sentences_seen": options.steps * options.batch, "seed": options.seed, "threads": options.threads}
    write(options.output, {"dense": scores(dense, tokenizer, pairs), "methods": rows}, **seen)


def measured(
    compact: PreTrainedModel,
    dense: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: dict[str, Any],
    texts: list[str],
    options: argparse.Namespace,
) -> dict[str, Any]:
    """Return size and scores, before and after the model is calibrated in place."""
    report = hce.inspect(compact, against=dense).to_dict()
    found = {name: report[name] for name in ("compact_bytes", "ratio", "relative_mse", "mean_cosine")}
    found["after_fit"] = scores(compact, tokenizer, pairs)
    hce.calibrate(
        compact,
        teacher=dense,
        # Never the same sentence twice; the rest need not be read.
        texts=texts[: options.steps * options.batch],
        tokenizer=tokenizer,
        trains="all",
        max_length=48,
        table_learning_rate=options.table_learning_rate,
        args={
            "max_steps": options.steps,
            "per_device_train_batch_size": options.batch,
            "learning_rate": options.learning_rate,
            "lr_scheduler_type": "linear",
            "warmup_steps": 0.1,
            "train_sampling_strategy": "group_by_length",
            "bf16": not options.fp32,
            "use_cpu": not torch.cuda.is_available(),
            "disable_tqdm": True,
            "report_to": "none",
            "logging_strategy": "no",
            "seed": options.seed,
        },
    )
    return found | {"after_calibration": scores(compact, tokenizer, pairs)}


def scores(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, pairs: dict[str, list[dict[str, Any]]]
) -> dict[str, float]:
    """Return the rank correlation on each part of the benchmark."""
    return {part: round(sts_spearman(model, tokenizer, rows), 2) for part, rows in pairs.items()}


def lines(rows: list[dict[str, Any]]) -> list[str]:
    """Return a table of the test scores."""
    found = [f"{'':<28}{'bytes':>10}{'ratio':>9}{'fit':>8}{'calibrated':>12}"]
    for row in rows:
        after = f"{row['after_fit']['test']:8.2f}{row['after_calibration']['test']:12.2f}"
        found.append(f"{row['method']:<28}{row['compact_bytes']:>10,}{row['ratio']:8.1f}×{after}")
    return found


if __name__ == "__main__":
    main()
