r"""Calibrate a compact masked LM, its head tied, by distillation; perplexity before and after, beside the teacher's.

    python benchmarks/calibrate_mlm.py --model MLM_FOLDER --texts reviews.txt wikitext2/train.txt \
        --held-out wikitext2/valid.txt --ratio 25 --steps 300 --work work_25x --output benchmarks/results/mlm_25x.json

Trains on the text that the model itself was trained on. The held-out text is read for the figures alone: nothing is
chosen on it, the last step is what counts. Killed and started again, it goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import math
import random
from pathlib import Path

import torch
import transformers
from mlm_perplexity import texts_of
from processor import prepare
from record import write
from transformers import AutoModelForMaskedLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

import hf_compact_embeddings as hce
from hf_compact_embeddings.checkpoints import load_compact
from hf_compact_embeddings.cli.arguments import parse_setting
from hf_compact_embeddings.evaluation.perplexity import perplexity
from hf_compact_embeddings.planning import stored_bytes_of_private_rows
from hf_compact_embeddings.training.calibration import calibrate


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", required=True, help="folder or Hub id of a masked LM with a tied head")
    parser.add_argument("--texts", nargs="+", required=True, help="text files, a text a line, to train on")
    parser.add_argument("--held-out", required=True, help="text file for the perplexity")
    parser.add_argument("--method", default="rotated")
    parser.add_argument("--ratio", type=float, help="of the table's bytes in float32, for methods that take a budget")
    parser.add_argument("--set", dest="options", action="append", default=[], metavar="OPTION=VALUE")
    parser.add_argument("--steps", type=int, default=300, help="0: the fit alone")
    parser.add_argument("--batch", type=int, default=32, help="pieces of 128 tokens a step")
    parser.add_argument("--learning-rate", type=float, default=2e-4)
    parser.add_argument("--table-learning-rate", type=float, default=0.01)
    parser.add_argument("--save-steps", type=int, default=50)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, required=True, help="folder for the fit and the checkpoints")
    parser.add_argument("--output", required=True, help="JSON file to write")
    return parser.parse_args()


def main() -> None:
    """Fit, calibrate, measure, write."""
    options = parse()
    prepare(options.threads)
    transformers.utils.logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    dense = AutoModelForMaskedLM.from_pretrained(options.model, dtype=torch.float32)
    texts = texts_of(options.texts, tokenizer)
    random.Random(options.seed).shuffle(texts)
    if not (options.work / "fit" / "config.json").exists():
        settings = dict(map(parse_setting, options.options))
        if options.ratio:
            budget = math.floor(dense.get_input_embeddings().weight.nbytes / options.ratio)
            settings["max_bytes"] = budget - stored_bytes_of_private_rows(
                dense.config.hidden_size, len(tokenizer.all_special_ids)
            )
        fit = hce.compress(dense, options.method, tokenizer=tokenizer, texts=texts, seed=options.seed, **settings)
        fit.save_pretrained(options.work / "fit")
    report = hce.inspect(load_compact(options.work / "fit"), against=dense).to_dict()
    models = {"dense": dense, "after_fit": load_compact(options.work / "fit")}
    if options.steps:
        models["after_calibration"] = calibrated(dense, tokenizer, texts, options)
    held_out = texts_of([options.held_out], tokenizer)
    found = {name: round(perplexity(model, tokenizer, held_out), 2) for name, model in models.items()}
    seen = options.steps * options.batch
    write(options.output, found, seed=options.seed, threads=options.threads, pieces_seen=seen, report_after_fit=report)
    print(json.dumps(found))


def calibrated(
    dense: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: list[str], options: argparse.Namespace
) -> PreTrainedModel:
    """Train the fit against the dense model, and return it as it would be saved."""
    compact = load_compact(options.work / "fit")
    calibrate(
        compact,
        teacher=dense,
        texts=texts,
        tokenizer=tokenizer,
        trains="all",
        table_learning_rate=options.table_learning_rate,
        resume_from_checkpoint=True,
        args={
            "output_dir": str(options.work / "run"),
            "max_steps": options.steps,
            "per_device_train_batch_size": options.batch,
            "learning_rate": options.learning_rate,
            "lr_scheduler_type": "linear",
            "warmup_steps": min(30, options.steps // 10),
            "save_steps": options.save_steps,
            "save_total_limit": 1,
            "logging_steps": 10,
            "bf16": True,
            "use_cpu": not torch.cuda.is_available(),
            "disable_tqdm": True,
            "seed": options.seed,
        },
    )
    compact.save_pretrained(options.work / "calibrated")
    return load_compact(options.work / "calibrated")


if __name__ == "__main__":
    main()
