r"""Direction-aware autoencoder against SVD inside a tied masked LM: equal bytes, equal trainability, both sides tied.

    python -m benchmarks.factorized.run --model minilm-mlm --train wikitext2/train.txt reviews.txt \
        --report wikitext2/valid.txt --task glue/sst2 --work models --output benchmarks/factorized/results/study.json

For each ratio (in the paper's count, of floats) and each way to fit: the power of the token frequency is chosen by
masked-LM perplexity on the last tenth of the first training file, which no count has seen. Then the table is measured:
its bytes, the paper's loss, its relative squared error, its cosines with the rows, the perplexity of the model on
every eighth block of 20 lines of the reported text, before any training, and the accuracy of the model on a task after
it was trained on some of the task's rows, all of it, in the same way for all. All fits of a ratio take the bytes of a
linear decoder with float16 values: hidden units take theirs from the codes. Numbers go to a JSON file, from which a
later run goes on where an earlier one stopped, and a plot beside it (SVG).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import re
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import AutoModelForMaskedLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

import hf_compact_embeddings as hce

from ..common import record
from ..common.device import torch_device
from ..common.library import (
    compress_within,
    count_tokens,
    exact_ids,
    fine_tuned_score,
    perplexity,
    private_bytes,
    stored_value,
)
from .plot import plot

SQUARED = {"cosine_loss": 0.0, "power_loss": 0.0, "rmse_loss": 1.0}
IN_METRIC = {"metric": "sensitivity"}
LINES_PER_BLOCK = 20
METRIC_TEXTS = 512
REPORTED_SHARE = 8


@dataclasses.dataclass(frozen=True)
class Fit:
    """A way to fit.

    Attributes:
        options: of the configuration.
        powers: of the frequency, to choose from.
        hidden: whether the decoder has hidden units.
        tuned: whether the model is trained on the task.
    """

    options: dict[str, Any]
    powers: tuple[float, ...] = (0.75, 1.0)
    hidden: bool = False
    tuned: bool = False


FITS = {
    "SVD, rows equal": Fit({"fit": "svd"}, (0.0,)),
    "direction, rows equal": Fit({}, (0.0,)),
    "SVD": Fit({"fit": "svd"}, tuned=True),
    "L2": Fit(SQUARED, tuned=True),
    "direction": Fit({}, tuned=True),
    "SVD, sensitivity": Fit({"fit": "svd", **IN_METRIC}),
    "direction, sensitivity": Fit(IN_METRIC),
    "L2, hidden units": Fit(SQUARED, (0.75,), hidden=True),
    "direction, hidden units": Fit({}, (0.75,), hidden=True, tuned=True),
    "L2, hidden units, sensitivity": Fit({**SQUARED, **IN_METRIC}, (0.75,), hidden=True),
    "direction, hidden units, sensitivity": Fit(IN_METRIC, (0.75,), hidden=True, tuned=True),
}
# The paper's loss: shares of the cosine and of the power of the error.
COSINE_SHARE, POWER_SHARE, POWER_EPSILON = 0.9975 / 5, 0.0025, 1e-10


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True, help="a masked LM with a tied head: folder or Hub id")
    parser.add_argument("--train", nargs="+", required=True, help="text to count in; the first one's end is held out")
    parser.add_argument("--report", required=True, help="text to report perplexity on")
    parser.add_argument(
        "--task", required=True, help="folder named like a task of GLUE, with train and validation rows"
    )
    parser.add_argument("--output", required=True, help="JSON file to write, and to go on from")
    parser.add_argument("--work", required=True, help="folder for the models, which a later run trains")
    parser.add_argument("--ratios", nargs="+", type=float, default=[10.0, 5.0, 2.5])
    parser.add_argument("--fits", nargs="+", choices=FITS, default=list(FITS))
    parser.add_argument("--hidden", type=int, default=512, help="hidden units, where there are any")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1], help="of the trainings on the task")
    parser.add_argument("--task-rows", type=int, default=4000, help="rows to train on")
    parser.add_argument("--selection-lines", type=int, default=160, help="lines of the held-out text to choose on")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only-plot", action="store_true")
    return parser.parse_args()


class Study:
    """What all measurements share: the model, its texts and counts, and the results so far."""

    def __init__(self, options: argparse.Namespace) -> None:
        """Load everything, and the results of earlier runs."""
        self.options = options
        self.tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(options.model)
        self.dense: PreTrainedModel = AutoModelForMaskedLM.from_pretrained(options.model, dtype=torch.float32).eval()
        self.dense.to(torch_device())
        self.table: Tensor = self.dense.get_input_embeddings().weight.detach()
        first, *others = (record.read_lines(path) for path in options.train)
        train, held_out = first[: len(first) * 9 // 10], first[len(first) * 9 // 10 :]
        self.selection = blocks(held_out, max(1, len(held_out) // options.selection_lines))
        self.report = blocks(record.read_lines(options.report), REPORTED_SHARE)
        self.counts = count_tokens(
            (line for lines in (train, *others) for line in lines), self.tokenizer, len(self.table)
        )
        long = [line for line in train if len(line) > 80] or train
        self.metric_texts = random.Random(0).sample(long, min(METRIC_TEXTS, len(long)))
        self.weights = self.counts.clone()
        self.exact = exact_ids(self.dense, self.tokenizer)
        self.weights[self.exact] = 0.0
        task = Path(options.task)
        rows = record.read_rows(task / "train.jsonl")
        self.task_rows = random.Random(0).sample(rows, min(options.task_rows, len(rows)))
        self.validation_rows = record.read_rows(task / "validation.jsonl")
        self.path = Path(options.output)
        self.results = read_results(self.path)

    def save(self) -> None:
        """Write the results so far."""
        settings = {
            "hidden_units": self.options.hidden,
            "selection_lines": len(self.selection),
            "reported_lines": len(self.report),
            "task": Path(self.options.task).name,
            "task_rows": len(self.task_rows),
            "task_validation_rows": len(self.validation_rows),
            "threads": self.options.threads,
        }
        record.write(self.path, self.results, settings=settings)

    def dense_cell(self) -> None:
        """Measure the dense model, and keep it as the others are."""
        if not (self.folder("dense") / "config.json").exists():
            self.keep(self.dense, "dense")
        if "dense" not in self.results:
            found = [self.perplexity(self.dense, lines) for lines in (self.report, self.selection)]
            cell = {"bytes": self.table.numel() * 4, "perplexity": found[0], "selection_perplexity": found[1]}
            self.results["dense"] = cell
            self.save()

    def cell(self, ratio: float, name: str) -> None:
        """Choose a power, measure, and keep the model to train later."""
        fit, key = FITS[name], f"{name} @ {ratio:g}x"
        known = self.results.get(key, {})
        if "perplexity" in known and (not fit.tuned or (self.folder(key) / "config.json").exists()):
            return
        selection: dict[str, dict[str, Any]] = {}
        lowest = float("inf")
        for power in fit.powers:
            model, seconds = self.compress(ratio, fit, power)
            found = self.perplexity(model, self.selection)
            selection[str(power)] = {"perplexity": found, **self.fidelity(model)}
            if found < lowest:
                lowest, best = found, model
                chosen = {"frequency_power": power, "fit_cpu_seconds": round(seconds, 1)}
        cell = {"fit": name, "ratio": ratio, **chosen, **selection[str(chosen["frequency_power"])]}
        cell |= {"perplexity": self.perplexity(best, self.report), "selection": selection}
        if fit.tuned:
            self.keep(best, key)
        self.results[key] = {**known, **cell}
        print(json.dumps(cell), file=sys.stderr, flush=True)
        self.save()

    def keep(self, model: PreTrainedModel, key: str) -> None:
        """Save a model with its tokenizer, to be trained."""
        model.save_pretrained(self.folder(key))
        self.tokenizer.save_pretrained(self.folder(key))

    def folder(self, key: str) -> Path:
        """Return where the model of a cell is kept."""
        return Path(self.options.work) / re.sub(r"[^a-z0-9.]+", "-", key.lower())

    def compress(self, ratio: float, fit: Fit, power: float) -> tuple[PreTrainedModel, float]:
        """Return a compact model, and the CPU seconds of the fit."""
        rows, width = self.table.shape
        options = {
            "max_bytes": linear_bytes(rows, width, ratio) + private_bytes(len(self.exact), width),
            "frequency_power": power,
            "hidden_width": self.options.hidden if fit.hidden else 0,
            **fit.options,
        }
        started = time.process_time()
        model = compress_within(
            self.dense, "factorized", options, self.tokenizer, token_counts=self.counts, texts=self.metric_texts
        )
        return model, time.process_time() - started

    def fidelity(self, model: PreTrainedModel) -> dict[str, Any]:
        """Return what the table takes, and how near its rows are to the dense ones, exact rows included."""
        structure = model.get_input_embeddings()
        report = hce.inspect(model, against=self.dense).to_dict()
        decoded = structure.dense().detach()
        cosines = torch.cosine_similarity(decoded, self.table, dim=1).double().cpu()
        # The paper's loss at the end of its training, when its power of the error is 0.1.
        error = (decoded - self.table).abs().add(POWER_EPSILON).pow(0.1).mean().item()
        return {
            "rank": stored_value(structure, "rank"),
            "bytes": structure.nbytes,
            "paper_loss": COSINE_SHARE * (1 - report["mean_cosine"]) + POWER_SHARE * error,
            "relative_mse": report["relative_mse"],
            "mean_cosine": report["mean_cosine"],
            "weighted_cosine": float(self.weights @ cosines / self.weights.sum()),
        }

    def perplexity(self, model: PreTrainedModel, lines: list[str]) -> float:
        """Return the masked-LM perplexity, in bfloat16 where layers allow."""
        with torch.autocast(model.device.type, dtype=torch.bfloat16):
            return round(perplexity(model, self.tokenizer, lines), 3)

    def tune(self, key: str, seed: int) -> None:
        """Train a model on the task, and note its accuracy in per cent."""
        done = self.results[key].setdefault("accuracies", {})
        if str(seed) in done:
            return
        task = Path(self.options.task).name
        arguments = {
            "learning_rate": 1e-4,
            "num_train_epochs": 1,
            "train_sampling_strategy": "group_by_length",
            "bf16": True,
            "use_cpu": not torch.cuda.is_available(),
        }
        started = time.process_time()
        score, _ = fine_tuned_score(
            self.folder(key), task, self.tokenizer, self.validation_rows, self.task_rows, seed, arguments
        )
        done[str(seed)] = round(score, 3)
        self.results[key] |= {
            "accuracy": round(statistics.fmean(done.values()), 3),
            "tuning_cpu_seconds": round(time.process_time() - started, 1),
        }
        print(json.dumps({key: done}), file=sys.stderr, flush=True)
        self.save()


def blocks(lines: list[str], every: int) -> list[str]:
    """Return every so manieth block of lines, so that texts keep their context."""
    return [line for number, line in enumerate(lines) if number // LINES_PER_BLOCK % every == 0]


def read_results(path: Path) -> dict[str, Any]:
    """Return the results that a file holds, if there is one."""
    return json.loads(path.read_text(encoding="utf-8"))["results"] if path.exists() else {}


def linear_bytes(rows: int, width: int, ratio: float) -> int:
    """Return the bytes of float16 factors of the highest rank with V·D / (V·k + k·D) of at least the ratio."""
    rank = int(rows * width / (rows + width) / ratio * (1 + 1e-12))
    return 2 * (rows * rank + rank * width + width)


def main() -> None:
    """Measure what is missing, write, and plot."""
    options = parse()
    torch.set_num_threads(options.threads)
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    if not options.only_plot:
        study = Study(options)
        study.dense_cell()
        for ratio in options.ratios:
            for name in options.fits:
                study.cell(ratio, name)
            tuned = [f"{name} @ {ratio:g}x" for name in options.fits if FITS[name].tuned]
            for seed in options.seeds:
                for key in ("dense", *tuned):
                    study.tune(key, seed)
    plot(read_results(Path(options.output)), Path(options.output).with_suffix(".svg"))


if __name__ == "__main__":
    main()
