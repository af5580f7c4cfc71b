"""The plot of what training brings: calibration curves, and fine-tuned checkpoints beside the dense model.

    python -m benchmarks.finetuning.plot --calibrated benchmarks/calibration/results/{100x,500x}_gpu.json \
        --finetuned benchmarks/finetuning/results/{100x_and_500x_gpu,25x,500x_task_counts_further}.json \
        --output benchmarks/finetuning/results/calibration_and_finetuning.svg

Every arm is compared with the dense one of its own file.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from ..common.picture import drawing, save

# Okabe and Ito, without yellow and black.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
TITLES = {"sst2": "SST-2", "cola": "CoLA", "mrpc": "MRPC", "rte": "RTE", "stsb": "STS-B", "mean": "mean"}


def main() -> None:
    """Draw, and write an SVG."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--calibrated", type=Path, nargs="+", required=True, help="records of benchmarks.calibration")
    parser.add_argument("--finetuned", type=Path, nargs="+", required=True, help="records of benchmarks.finetuning")
    parser.add_argument("--output", type=Path, required=True, help="SVG file to write")
    options = parser.parse_args()
    figure, (left, right) = drawing("training").subplots(1, 2, figsize=(13, 5), width_ratios=(2, 3))
    curves(left, [json.loads(path.read_text()) for path in sorted(options.calibrated)])
    differences(right, [json.loads(path.read_text())["results"]["summary"] for path in options.finetuned])
    figure.tight_layout()
    save(figure, options.output)


def curves(axes: Any, records: list[dict[str, Any]]) -> None:
    """Draw the score on the validation part over the sentences seen."""
    records.sort(key=ratio)
    for colour, record in zip(COLOURS, records, strict=False):
        curve = record["results"]["curve_on_validation"]
        batch = record["sentences_seen"] / curve[-1]["step"]
        axes.plot(
            [point["step"] * batch / 1000 for point in curve],
            [point["validation"] for point in curve],
            marker="o",
            color=colour,
            label=f"{ratio(record):.0f}× smaller",
        )
        if (chosen := record["results"]["sts_validation"].get("part_of_the_way")) is not None:
            seen = record["sentences_seen"] / 1000
            look = {"marker": "*", "markersize": 13, "linestyle": "none", "color": colour}
            axes.plot([seen], [chosen], **look, label="part of the way from the fit")
    axes.axhline(records[0]["results"]["sts_validation"]["dense"], color="#777777", linestyle=":", label="dense")
    axes.set(xlabel="thousand sentences seen", ylabel="STS-B validation, Spearman × 100", ylim=(None, 88))
    axes.set_title("Calibration of all-MiniLM-L6-v2 (0: the fit alone)")
    axes.legend(loc="center", bbox_to_anchor=(0.5, 0.55), fontsize=9)
    axes.grid(alpha=0.3)


def ratio(record: dict[str, Any]) -> float:
    """Return how much smaller the table is than in float32, whatever the original was loaded in."""
    report = record["results"]["report_after_fit"]
    return 4 * report["rows"] * report["width"] / report["compact_bytes"]


def differences(axes: Any, summaries: list[dict[str, Any]]) -> None:
    """Draw each arm's difference to the dense one, with its 95 % interval."""
    arms = {arm: cells for summary in summaries for arm, cells in list(summary.items())[1:]}
    if len(arms) > len(COLOURS):
        sys.exit(f"{len(arms)} arms are more than a plot can tell apart: give the files of {len(COLOURS)} at most")
    width = 0.8 / len(arms)
    for index, ((arm, cells), colour) in enumerate(zip(arms.items(), COLOURS, strict=False)):
        means = [cell["difference"] for cell in cells.values()]
        known = all(cell["interval_95"] for cell in cells.values())
        reaches = [cell["interval_95"][1] - cell["difference"] for cell in cells.values()] if known else None
        positions = [column + (index - (len(arms) - 1) / 2) * width for column in range(len(cells))]
        seeds = len(cells["mean"]["values"])
        label = f"{arm}, {'one seed' if seeds == 1 else f'{seeds} seeds'}"
        axes.bar(positions, means, width * 0.9, yerr=reaches, capsize=3, color=colour, label=label)
    axes.axhline(0, color="#777777", linewidth=1)
    tasks = next(iter(arms.values()))
    axes.set_xticks(range(len(tasks)), [TITLES.get(task, task) for task in tasks])
    axes.set(ylabel="points above or below dense, same seeds")
    axes.set_title("Fine-tuned, less dense, with 95 % intervals")
    axes.legend(loc="best")
    axes.grid(axis="y", alpha=0.3)


if __name__ == "__main__":
    main()
