"""The plot of the frontier benchmark: sentence similarity over the ratio, distance to the bound over the rate."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..common.picture import drawing, save

# Colour, marker, line. Ours are drawn through, other libraries dashed. Colours by Okabe and Ito, and greys.
STYLES: dict[str, tuple[str, str, str]] = {
    "rotated, frequency and sensitivity": ("#D55E00", "o", "-"),
    "rotated, frequency": ("#E69F00", "D", "-"),
    "rotated": ("#0072B2", "o", "-"),
    "blocks, frequency and sensitivity": ("#B8A000", "p", "-"),
    "blocks": ("#B8A000", "p", "-"),
    "subspace, frequency": ("#009E73", "s", "-"),
    "subspace": ("#009E73", "s", "-"),
    "factorized (SVD), frequency": ("#CC79A7", "v", "-"),
    "factorized (SVD)": ("#CC79A7", "v", "-"),
    "scalar": ("#000000", "x", "-"),
    "faiss PQ": ("#56B4E9", "^", "--"),
    "faiss OPQ": ("#3B3BB3", "P", "--"),
    "faiss OPQ, rows drawn by frequency": ("#8C6BD1", "*", "--"),
    "TorchAO": ("#7F7F7F", "+", "--"),
    "bitsandbytes": ("#A6761D", "1", "--"),
    "model2vec int8": ("#8B0000", "2", "--"),
    "model2vec vocabulary": ("#8B0000", "h", "--"),
}


def pareto(points: Sequence[tuple[float, float]], slack: float = 0.03) -> list[int]:
    """Return which points (ratio, score) no other beats, by rising ratio: in both more is better.

    Ratios that differ by no more than the slack count as the same size.
    """
    kept = [
        index
        for index, (ratio, score) in enumerate(points)
        if not any(
            (other * (1 + slack) >= ratio and better > score) or (other > ratio and better == score)
            for other, better in points
        )
    ]
    return sorted(kept, key=lambda index: points[index])


def plot(results: list[dict[str, Any]], dense_score: float, score: str, path: Path) -> None:
    """Draw the best of each group, and write an SVG.

    Args:
        results: the best of each group.
        dense_score: of the model before.
        score: the column with the sentence similarity.
        path: of the picture.
    """
    figure, (left, right) = drawing("frontier").subplots(1, 2, figsize=(13, 5.8))
    scored = [result for result in results if score in result]
    edge = [scored[i] for i in pareto([(result["ratio"], result[score]) for result in scored])]
    left.scatter(
        [result["ratio"] for result in edge],
        [result[score] for result in edge],
        s=260,
        color="#DDDDDD",
        zorder=0,
        label="on the Pareto front",
    )
    left.axhline(dense_score, color="#999999", linewidth=1, linestyle=":", label="dense, float32")
    _lines(left, scored, "ratio", score)
    left.set(xscale="log", xlabel="times smaller than float32", ylabel=f"STS-B {score}, Spearman × 100")
    left.set_xticks([4, 8, 16, 25, 50, 97, 150, 500], labels=["4", "8", "16", "25", "50", "97", "150", "500"])
    left.minorticks_off()
    left.set_title("Sentence similarity of all-MiniLM-L6-v2, untrained")
    plain = [result for result in results if not result["weighted"]]
    _lines(right, plain, "bits_per_weight", "gap_db")
    right.set(
        xscale="log", xlabel="bits for each value of the table", ylabel="dB above the Shannon bound", ylim=(0, 11)
    )
    right.set_xticks([0.064, 0.3, 1, 2, 4, 8], labels=["0.064", "0.3", "1", "2", "4", "8"])
    right.minorticks_off()
    right.set_title("Squared error, fits that know no frequencies")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    handles: dict[str, Any] = {}
    for axes in (left, right):
        handles |= {label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="lower center", ncols=4, frameon=False, fontsize=9)
    figure.tight_layout(rect=(0, 0.2, 1, 1))
    save(figure, path)


def _lines(axes: Any, results: list[dict[str, Any]], across: str, up: str) -> None:
    for family, (colour, marker, line) in STYLES.items():
        mine = sorted((result for result in results if result["family"] == family), key=lambda result: result[across])
        if mine:
            axes.plot(
                [result[across] for result in mine],
                [result[up] for result in mine],
                color=colour,
                marker=marker,
                linestyle=line,
                linewidth=1.4,
                # Of two lines of a colour, the hollow one knows no frequencies.
                markerfacecolor="white" if f"{family}, frequency" in STYLES and marker != "o" else colour,
                label=family,
            )
