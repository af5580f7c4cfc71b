r"""Direction-aware autoencoder against SVD inside a tied masked LM: equal bytes, equal trainability, both sides tied.

    python benchmarks/factorized_study.py --model minilm-mlm --train wikitext2/train.txt reviews.txt \
        --report wikitext2/valid.txt --task glue/sst2 --work models --output benchmarks/results/factorized_study.json

For each ratio (in the paper's count, of floats) and each way to fit: the power of the token frequency is chosen by
masked-LM perplexity on the last tenth of the first training file, which no count has seen. Then the table is measured:
its bytes, the paper's loss, its relative squared error, its cosines with the rows, the perplexity of the model on
every eighth block of 20 lines of the reported text, before any training, and the accuracy of the model on a task after
it was trained on some of the task's rows, all of it, in the same way for all. All fits of a ratio take the bytes of a
linear decoder with float16 values: hidden units take theirs from the codes. Numbers go to a JSON file, from which a
later run goes on where an earlier one stopped, and a plot beside it (PNG and SVG).
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import random
import re
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import record
import torch
import transformers
from torch import Tensor
from transformers import AutoModelForMaskedLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

import hf_compact_embeddings as hce
from hf_compact_embeddings.evaluation.classification import find_task
from hf_compact_embeddings.evaluation.finetuning import classify, save_beside
from hf_compact_embeddings.evaluation.perplexity import perplexity
from hf_compact_embeddings.evidence import gathering, read_texts
from hf_compact_embeddings.evidence.exact_rows import always_exact
from hf_compact_embeddings.evidence.frequencies import count_tokens
from hf_compact_embeddings.fitting.direction_loss import DirectionLoss
from hf_compact_embeddings.fitting.factorization import Factors, measure_fit
from hf_compact_embeddings.modeling.architectures import find_input_table

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
# Colour, marker and line. The metric dashed, equal rows dotted; colours by Okabe and Ito.
STYLES = {
    "SVD, rows equal": ("#000000", "x", ":"),
    "direction, rows equal": ("#D55E00", "x", ":"),
    "SVD": ("#000000", "s", "-"),
    "L2": ("#56B4E9", "v", "-"),
    "direction": ("#D55E00", "o", "-"),
    "SVD, sensitivity": ("#000000", "s", "--"),
    "direction, sensitivity": ("#D55E00", "o", "--"),
    "L2, hidden units": ("#0072B2", "^", "-"),
    "direction, hidden units": ("#009E73", "D", "-"),
    "L2, hidden units, sensitivity": ("#0072B2", "^", "--"),
    "direction, hidden units, sensitivity": ("#009E73", "D", "--"),
}
PANELS = {
    "relative_mse": "relative squared error",
    "mean_cosine": "mean cosine, rows equal",
    "weighted_cosine": "mean cosine, by token count",
    "paper_loss": "the paper's loss",
    "perplexity": "masked-LM perplexity, no training",
    "accuracy": "accuracy after fine-tuning, per cent",
}


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
        self.dense.to("cuda" if torch.cuda.is_available() else "cpu")
        self.table: Tensor = self.dense.get_input_embeddings().weight.detach()
        first, *others = (record.read_lines(path) for path in options.train)
        train, held_out = first[: len(first) * 9 // 10], first[len(first) * 9 // 10 :]
        self.selection = blocks(held_out, max(1, len(held_out) // options.selection_lines))
        self.report = blocks(record.read_lines(options.report), REPORTED_SHARE)
        self.counts = count_tokens(
            (line for lines in (train, *others) for line in lines), self.tokenizer, len(self.table)
        )
        long = [line for line in train if len(line) > 80] or train
        # Hashable, so that the metric is measured once for all fits.
        self.metric_texts = read_texts(random.Random(0).sample(long, min(METRIC_TEXTS, len(long))))
        self.weights = self.counts.clone()
        self.weights[always_exact(find_input_table(self.dense), self.tokenizer)] = 0.0
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
            save_beside(self.dense, self.tokenizer, self.folder("dense"))
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
            save_beside(best, self.tokenizer, self.folder(key))
        self.results[key] = {**known, **cell}
        print(json.dumps(cell), file=sys.stderr, flush=True)
        self.save()

    def folder(self, key: str) -> Path:
        """Return where the model of a cell is kept."""
        return Path(self.options.work) / re.sub(r"[^a-z0-9.]+", "-", key.lower())

    def compress(self, ratio: float, fit: Fit, power: float) -> tuple[PreTrainedModel, float]:
        """Return a compact model, and the CPU seconds of the fit."""
        rows, width = self.table.shape
        linear = hce.FactorizedConfig(ratio=ratio).resolved(rows, width)
        assert linear.rank is not None
        config = hce.FactorizedConfig(
            max_bytes=linear.stored_bytes(rows, width, linear.rank),
            frequency_power=power,
            hidden_width=self.options.hidden if fit.hidden else 0,
            **fit.options,
        )
        started = time.process_time()
        model = hce.compress(
            self.dense, config, tokenizer=self.tokenizer, token_counts=self.counts, texts=self.metric_texts
        )
        return model, time.process_time() - started

    def fidelity(self, model: PreTrainedModel) -> dict[str, Any]:
        """Return what the table takes, and how near its rows are to the dense ones, exact rows included."""
        structure = model.get_input_embeddings()
        rows = structure.dense().detach()
        decoded = Factors(rows, torch.eye(rows.shape[1], device=rows.device))
        measures = measure_fit(self.table, decoded)
        return {
            "rank": structure.config.rank,
            "bytes": structure.nbytes,
            "paper_loss": DirectionLoss().value(measures),
            "relative_mse": measures.relative_mse,
            "mean_cosine": measures.mean_cosine,
            "weighted_cosine": measure_fit(self.table, decoded, weights=self.weights).mean_cosine,
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
        task = find_task(Path(self.options.task).name)
        arguments = {
            "learning_rate": 1e-4,
            "num_train_epochs": 1,
            "train_sampling_strategy": "group_by_length",
            "bf16": True,
            "use_cpu": not torch.cuda.is_available(),
        }
        started = time.process_time()
        found = classify(self.folder(key), task, self.tokenizer, self.validation_rows, self.task_rows, seed, arguments)
        done[str(seed)] = round(100 * found[task.metrics[0]], 3)
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


def plot(results: dict[str, Any], path: Path) -> None:
    """Draw every measure over the ratio, and write a PNG and an SVG beside each other."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    matplotlib.rcParams["svg.hashsalt"] = path.stem
    figure, grid = pyplot.subplots(2, 3, figsize=(14, 9))
    ratios = sorted({cell["ratio"] for cell in results.values() if "ratio" in cell})
    for axes, (measure, title) in zip(grid.flat, PANELS.items(), strict=True):
        for name, (colour, marker, line) in STYLES.items():
            cells = [results.get(f"{name} @ {ratio:g}x", {}) for ratio in ratios]
            points = [(cell["ratio"], cell[measure]) for cell in cells if measure in cell]
            label = name if name.endswith("equal") else f"{name}, rows by frequency"
            if points:
                axes.plot(*zip(*points, strict=True), color=colour, marker=marker, linestyle=line, label=label)
        if measure in results.get("dense", {}):
            axes.axhline(results["dense"][measure], color="#999999", linewidth=1, label="dense model")
        axes.set_title(title)
        axes.set_xscale("log")
        if measure == "perplexity":
            shown = [cell[measure] for cell in results.values() if not cell.get("fit", "").endswith("equal")]
            ticks = [
                value for value in (50, 70, 100, 150, 200, 300, 500) if min(shown) / 1.1 < value < max(shown) * 1.2
            ]
            axes.set_yscale("log")
            axes.set_ylim(min(shown) / 1.05, max(shown) * 1.2)
            axes.set_yticks(ticks, [str(value) for value in ticks])
            axes.text(0.03, 0.95, "with equal rows it is above what is shown", transform=axes.transAxes, va="top")
        axes.set_xlim(ratios[0] / 1.15, ratios[-1] * 1.15)
        axes.set_xticks(ratios, [f"{ratio:g}×" for ratio in ratios])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    # Every line is in some panel; the perplexity's has all, and the dense model.
    handles, labels = grid.flat[list(PANELS).index("perplexity")].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncol=3, frameon=False)
    figure.supxlabel("ratio in the paper's count", y=0.125, fontsize="medium")
    figure.tight_layout(rect=(0, 0.14, 1, 1))
    figure.savefig(path.with_suffix(".png"), dpi=130)
    figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})
    pyplot.close(figure)


def main() -> None:
    """Measure what is missing, write, and plot."""
    options = parse()
    torch.set_num_threads(options.threads)
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    if not options.only_plot:
        gathering.sensitivity_metric = functools.cache(gathering.sensitivity_metric)
        study = Study(options)
        study.dense_cell()
        for ratio in options.ratios:
            for name in options.fits:
                study.cell(ratio, name)
            tuned = [f"{name} @ {ratio:g}x" for name in options.fits if FITS[name].tuned]
            for seed in options.seeds:
                for key in ("dense", *tuned):
                    study.tune(key, seed)
    plot(read_results(Path(options.output)), Path(options.output))


if __name__ == "__main__":
    main()
