"""The plot of the study: every measure over the ratio."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..common.picture import drawing, save

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


def plot(results: dict[str, Any], path: Path) -> None:
    """Draw every measure over the ratio, and write an SVG."""
    figure, grid = drawing(path.stem).subplots(2, 3, figsize=(14, 9))
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
    save(figure, path)
