r"""Draw what a model's file holds, before and after, with the quality beside it: the picture of the README.

    python -m benchmarks.frontier.plot_bytes benchmarks/frontier/results/defaults_e5.json --given languages \
        --title "multilingual-e5-small, STS in five languages that were named, no training, no data" \
        --rows 250037 --width 384 --other-bytes 85989040 --output docs/pictures/e5_bytes.svg

The record is one of `benchmarks.frontier.defaults`; what is not the table is in float32, as in the dense model.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from ..common.picture import drawing, save, without_frame

_TABLE, _REST, _INK = "#D55E00", "#B9C4CE", "#222222"
_MEGABYTE = 1e6


def main() -> None:
    """Read a record, draw one picture."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("record", help="JSON file of benchmarks.frontier.defaults")
    parser.add_argument("--given", default="nothing", help="which of its rows: nothing, languages, texts")
    parser.add_argument("--title", required=True)
    parser.add_argument("--rows", type=int, required=True)
    parser.add_argument("--width", type=int, required=True)
    parser.add_argument("--other-bytes", type=int, required=True, help="of the file beside the table")
    parser.add_argument("--output", required=True, help="SVG file to write")
    options = parser.parse_args()
    results = json.loads(Path(options.record).read_text())["results"]
    dense = {"ratio": 1, "bytes": 4 * options.rows * options.width, "scores": results[0]["scores"]}
    rows = [dense, *(row for row in results if row["given"] == options.given)]
    plot(rows, options.other_bytes, options.title, Path(options.output))


def mean_loss(row: dict[str, Any], dense: dict[str, Any]) -> float:
    """Return the mean loss over all sets of pairs, in points."""
    return sum(dense["scores"][name] - score for name, score in row["scores"].items()) / len(row["scores"])


def plot(rows: list[dict[str, Any]], other_bytes: int, title: str, path: Path) -> None:
    """Draw a bar a row, and write the picture."""
    figure, axes = drawing("bytes").subplots(figsize=(9, 0.62 * len(rows) + 1.1))
    figure.patch.set_facecolor("white")
    for place, row in enumerate(rows):
        table, whole = row["bytes"] / _MEGABYTE, (row["bytes"] + other_bytes) / _MEGABYTE
        axes.barh(place, other_bytes / _MEGABYTE, color=_REST, height=0.62)
        axes.barh(place, table, left=other_bytes / _MEGABYTE, color=_TABLE, height=0.62)
        size = f"{table:.0f}" if table >= 10 else f"{table:.1f}"
        loss = "" if place == 0 else f", {mean_loss(row, rows[0]):.1f} points lost"
        label = f"table {size} MB{loss}"
        inside = place == 0
        across = (other_bytes / _MEGABYTE + table / 2) if inside else whole + 5
        axes.text(
            across, place, label, va="center", ha="center" if inside else "left", color="white" if inside else _INK
        )
        axes.text(other_bytes / _MEGABYTE / 2, place, "layers", va="center", ha="center", color=_INK)
    names = ["dense" if row["ratio"] == 1 else f"{row['ratio']:.0f}×" for row in rows]
    axes.set_yticks(range(len(rows)), labels=names)
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("MB on disk, float32")
    axes.set_title(title, loc="left", fontsize=11)
    without_frame(axes, "top", "right", "left")
    figure.tight_layout()
    save(figure, path)


if __name__ == "__main__":
    main()
