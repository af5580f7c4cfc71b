"""Compact checkpoints fine-tuned on five tasks of GLUE, beside the dense model fine-tuned with the same seeds.

    python -m benchmarks.finetuning.run --arms dense=sentence-transformers/all-MiniLM-L6-v2 25x=calibrated/25x/now \
        --data DATA --work finetuned --output benchmarks/finetuning/results/25x.json

Every arm is trained alike, by Trainer, with its defaults but for the options below: nothing is chosen on the
validation rows, which give the scores. To choose, say, a rate, `--hold-out 1000` scores on rows of the training part,
which are then not trained on. SST-2 on 10,000 rows, the same in all runs. A run that is finished is not done again: the
same command goes on where it was interrupted, and several commands with other `--seeds` can share the work.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoTokenizer

from ..common.device import device_name, prepare
from ..common.library import fine_tuned_score, interval_95
from ..common.record import read_rows, write

# Passes over the rows: one over the 10,000 of SST-2, four over the fewer rows of the others.
EPOCHS = {"sst2": 1.0, "cola": 4.0, "mrpc": 4.0, "rte": 4.0, "stsb": 4.0}
MOST_ROWS = 10_000


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--arms", nargs="+", required=True, metavar="NAME=MODEL", help="the first is the dense one")
    parser.add_argument("--data", type=Path, required=True, help="folder with glue/sst2 and so on, and stsb/en")
    parser.add_argument("--tasks", nargs="+", default=list(EPOCHS), choices=EPOCHS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--epochs", type=float, help="of every task; by default so many for each: " + str(EPOCHS))
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--max-length", type=int, default=64, help="of an input in tokens")
    parser.add_argument("--hold-out", type=int, default=0, metavar="ROWS", help="of the training part, to score on")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--work", type=Path, required=True, help="folder with a file for each finished run")
    parser.add_argument("--output", type=Path, help="JSON file to write when all is done")
    return parser.parse_args()


def main() -> None:
    """Run what is not done yet, and sum up."""
    options = parse()
    prepare(options.threads)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    options.work.mkdir(parents=True, exist_ok=True)
    arms = dict(arm.split("=", 1) for arm in options.arms)
    scores: dict[str, dict[str, list[float]]] = {arm: {task: [] for task in options.tasks} for arm in arms}
    devices: dict[str, list[str]] = {arm: [] for arm in arms}
    shared = {name: getattr(options, name) for name in ("batch", "learning_rate", "max_length", "threads")}
    if options.hold_out:
        shared["hold_out"] = options.hold_out
    epochs = {task: options.epochs or EPOCHS[task] for task in options.tasks}
    # All arms of a seed before the next seed, so that an unfinished table is fair.
    for seed in options.seeds:
        for task in options.tasks:
            for arm, folder in arms.items():
                settings = {**shared, "epochs": epochs[task], "model": "/".join(Path(folder).parts[-2:])}
                path = options.work / f"{arm}-{task}-{seed}.json"
                if not path.exists():
                    path.write_text(json.dumps({"settings": settings, **run(folder, task, seed, settings, options)}))
                    print(f"{time.strftime('%H:%M:%S')} {path.stem} {path.read_text()}", flush=True)
                found = json.loads(path.read_text())
                if found["settings"] != settings:
                    sys.exit(f"{path} was made with {found['settings']}: take another folder for --work")
                scores[arm][task].append(found["score"])
                devices[arm] = sorted({*devices[arm], found["device"]})
    table = summary(scores)
    print("\n".join(lines(table)))
    if options.output:
        found = {"summary": table, "scores": scores}
        write(options.output, found, **shared, epochs=epochs, seeds=options.seeds, devices=devices)


def run(folder: str, task: str, seed: int, settings: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """Train once, and return score (in per cent) and metrics."""
    started = time.process_time()
    folder_of_task = options.data / ("stsb/en" if task == "stsb" else f"glue/{task}")
    train, held_out = (read_rows(folder_of_task / f"{part}.jsonl") for part in ("train", "validation"))
    # Which rows does not depend on the seed.
    random.Random(0).shuffle(train)
    if options.hold_out:
        held_out, train = train[: options.hold_out], train[options.hold_out :]
    args = {
        "num_train_epochs": settings["epochs"],
        "per_device_train_batch_size": settings["batch"],
        "learning_rate": settings["learning_rate"],
        "warmup_steps": 0.06,
        "train_sampling_strategy": "group_by_length",
        "bf16": True,
        "report_to": "none",
        "use_cpu": not torch.cuda.is_available(),
    }
    score, metrics = fine_tuned_score(
        folder,
        task,
        AutoTokenizer.from_pretrained(folder),
        held_out,
        train[:MOST_ROWS],
        seed,
        args,
        settings["max_length"],
    )
    seconds = round(time.process_time() - started)
    return {"score": round(score, 2), "metrics": metrics, "cpu_seconds": seconds, "device": device_name()}


def summary(scores: dict[str, dict[str, list[float]]]) -> dict[str, Any]:
    """Return mean and spread by arm and task, and the differences to the dense arm, seed by seed."""
    dense = next(iter(scores))
    found: dict[str, Any] = {}
    for arm, tasks in scores.items():
        columns = {**tasks, "mean": [statistics.fmean(run) for run in zip(*tasks.values(), strict=True)]}
        found[arm] = {}
        for task, values in columns.items():
            cell: dict[str, Any] = {"mean": round(statistics.fmean(values), 2), "std": _spread(values)}
            if arm != dense:
                others = found[dense][task]["values"]
                pairs = [round(one - other, 4) for one, other in zip(values, others, strict=True)]
                interval = interval_95(pairs)
                cell["difference"] = round(statistics.fmean(pairs), 2)
                cell["interval_95"] = interval and [round(end, 2) for end in interval]
            found[arm][task] = cell | {"values": [round(value, 4) for value in values]}
    return found


def _spread(values: list[float]) -> float | None:
    return round(statistics.stdev(values), 2) if len(values) > 1 else None


def lines(table: dict[str, Any]) -> list[str]:
    """Return the summary as text, the differences with half the width of their interval."""
    tasks = list(next(iter(table.values())))
    found = [f"{'':<14}" + "".join(f"{task:>16}" for task in tasks)]
    for arm, cells in table.items():
        found.append(f"{arm:<14}" + "".join(f"{_with(cell['mean'], cell['std']):>16}" for cell in cells.values()))
        if any("difference" in cell for cell in cells.values()):
            reaches = [
                (cell["interval_95"][1] - cell["difference"]) if cell["interval_95"] else None
                for cell in cells.values()
            ]
            differences = [cell["difference"] for cell in cells.values()]
            cells_of_it = (_with(value, reach, "+") for value, reach in zip(differences, reaches, strict=True))
            found.append(f"{'  less dense':<14}" + "".join(f"{text:>16}" for text in cells_of_it))
    return found


def _with(value: float, spread: float | None, sign: str = "") -> str:
    return f"{value:{sign}.2f}" + ("" if spread is None else f" ± {spread:.2f}")


if __name__ == "__main__":
    main()
