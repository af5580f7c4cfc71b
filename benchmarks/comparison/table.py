r"""Lay out all results of a model, smallest loss first at each ratio, and draw them over bytes.

python -m benchmarks.comparison.table multilingual-e5-small --plot benchmarks/comparison/results/e5.svg
"""

from __future__ import annotations

import argparse
import json
from itertools import groupby
from pathlib import Path
from typing import Any

from ..common.picture import drawing, save, without_frame
from .run import RESULTS

_MEGABYTE = 1e6
_COLORS = ["#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C564B"]


def main() -> None:
    """Read the folder, print the table, draw the plot."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("subject")
    parser.add_argument("--plot", type=Path, help="SVG file to write")
    parser.add_argument("--measure", default="similarity, Spearman", help="which measure the plot shows")
    options = parser.parse_args()
    results = read(options.subject)
    print(as_markdown(results))
    if options.plot:
        plot(results, options.measure, f"{options.subject}: {options.measure}, no training", options.plot)


def read(subject: str) -> list[dict[str, Any]]:
    """Read all results of a model, by ratio asked for and then by the mean of what they lose."""
    found = [json.loads(path.read_text())["results"] for path in (RESULTS / subject).glob("*.json")]
    return sorted(found, key=lambda one: (one["experiment"]["ratio"], -_mean(one)))


def _mean(result: dict[str, Any]) -> float:
    values = [entry["difference"]["mean"] for entry in result["differences"].values()]
    return sum(values) / len(values)


def as_markdown(results: list[dict[str, Any]]) -> str:
    """Return a table: a row a result, a column a measure, with intervals."""
    measures = list(results[0]["differences"])
    lines = [
        "| table | MB | whole model, MB | " + " | ".join(measures) + " |",
        "|---" * (3 + len(measures)) + "|",
    ]
    for ratio, members in groupby(results, key=lambda one: one["experiment"]["ratio"]):
        lines.append(f"| **{ratio:g}×** | | | " + " | ".join("" for _ in measures) + " |")
        for one in members:
            cells = [_cell(one["differences"][name]["difference"]) for name in measures]
            sizes = [f"{one[name] / _MEGABYTE:.2f}" for name in ("table_bytes", "model_bytes")]
            lines.append(f"| {one['experiment']['label']} | " + " | ".join(sizes + cells) + " |")
    return "\n".join(lines)


def _cell(difference: dict[str, float]) -> str:
    return f"{difference['mean']:+.2f} ({difference['low']:+.2f} to {difference['high']:+.2f})".replace("-", "−")


def plot(results: list[dict[str, Any]], measure: str, title: str, path: Path) -> None:
    """Draw a line a label: the difference over the bytes of the table."""
    figure, axes = drawing("comparison").subplots(figsize=(8, 4.6))
    figure.patch.set_facecolor("white")
    labels = sorted({one["experiment"]["label"] for one in results})
    ends = []
    for color, label in zip(_COLORS, labels, strict=False):
        chosen = [one for one in results if one["experiment"]["label"] == label]
        points = sorted((one["table_bytes"] / _MEGABYTE, one["differences"][measure]["difference"]) for one in chosen)
        across, up = [point[0] for point in points], [point[1]["mean"] for point in points]
        spread = [
            [value["mean"] - value["low"] for _, value in points],
            [value["high"] - value["mean"] for _, value in points],
        ]
        axes.errorbar(across, up, yerr=spread, color=color, marker="o", markersize=4, linewidth=1.4, capsize=2)
        ends.append((up[0], across[0], label, color))
    axes.axhline(0, color="#999999", linewidth=0.8)
    axes.set_xscale("log")
    for up, across, label, color in ends:
        axes.annotate(
            label, (across, up), xytext=(-6, 0), textcoords="offset points", ha="right", va="center", color=color
        )
    axes.set_xlabel("MB of the table")
    axes.set_ylabel("points, to dense")
    axes.set_title(title, loc="left", fontsize=11)
    axes.set_xlim(left=axes.get_xlim()[0] / 3)
    without_frame(axes, "top", "right")
    figure.tight_layout()
    save(figure, path)


if __name__ == "__main__":
    main()
