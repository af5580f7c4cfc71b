r"""Draw how far predictions move over the bytes of a table that is the head too: ours and other libraries'.

    python -m benchmarks.frontier.plot_tied benchmarks/frontier/results/tied_smollm2.json \
        benchmarks/frontier/results/tied_smollm2_peers.json --rows 49152 --width 576 \
        --output benchmarks/frontier/results/tied_smollm2.svg

The size of the dense table turns ratios into bytes.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from ..common.picture import drawing, save, without_frame

# Of each line its label, the beginning of its settings' names, colour, marker and line; colours by Okabe and Ito.
_LINES = (
    ("compress(ratio=…), with texts", "ours, texts", "#D55E00", "o", "-"),
    ("compress(ratio=…), no data", "ours, no data", "#E69F00", "D", ""),
    ("the fit, calibrated", "calibrated", "#0072B2", "o", "-"),
    ("faiss OPQ", "faiss OPQ", "#3B3BB3", "P", "--"),
    ("TorchAO int8, int4", "TorchAO", "#7F7F7F", "s", ""),
    ("GGUF Q8_0, Q4_0", "GGUF", "#009E73", "^", ""),
    ("bitsandbytes NF4", "bitsandbytes", "#A6761D", "v", ""),
    ("int4, int2, a scale a row", "int", "#8B0000", "x", "--"),
)
_MEGABYTE = 1e6


def main() -> None:
    """Read records, draw one picture."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("records", nargs="+", help="JSON files of benchmarks.frontier.tied and tied_calibrated")
    parser.add_argument("--rows", type=int, required=True)
    parser.add_argument("--width", type=int, required=True)
    parser.add_argument("--output", required=True, help="SVG file to write")
    options = parser.parse_args()
    results = [row for path in options.records for row in json.loads(Path(path).read_text())["results"]]
    plot(results, 4 * options.rows * options.width, Path(options.output))


def plot(results: list[dict[str, Any]], dense_bytes: int, path: Path) -> None:
    """Draw the divergence over the bytes, and write an SVG."""
    figure, axes = drawing("tied").subplots(figsize=(8.5, 5.2))
    for label, beginning, colour, marker, line in _LINES:
        mine = sorted((row for row in results if row["name"].startswith(beginning)), key=lambda row: row["ratio"])
        if not mine:
            continue
        across = [dense_bytes / row["ratio"] / _MEGABYTE for row in mine]
        style = {"color": colour, "marker": marker, "linestyle": line or "none", "linewidth": 1.6, "markersize": 6}
        axes.plot(across, [row["kl"] for row in mine], label=label, **style)
    axes.set(
        xscale="log",
        yscale="log",
        xlabel=f"MB of the table, which is the head too (dense: {dense_bytes / _MEGABYTE:.0f} MB)",
        ylabel="KL divergence from the dense model, nats a token",
    )
    ticks = [2, 3, 5, 7, 10, 15, 30]
    axes.set_xticks(ticks, labels=map(str, ticks))
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    without_frame(axes, "top", "right")
    axes.legend(frameon=False, fontsize=9)
    figure.tight_layout()
    save(figure, path)


if __name__ == "__main__":
    main()
