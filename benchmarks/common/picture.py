"""Pictures that come out the same, byte by byte, whenever they are drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def drawing(name: str) -> Any:
    """Return matplotlib's pyplot, for pictures without a screen; the name tells the pictures' inner ids apart."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    matplotlib.rcParams["svg.hashsalt"] = name
    return pyplot


def without_frame(axes: Any, *sides: str) -> None:
    """Leave out the lines on these sides of a plot."""
    for side in sides:
        axes.spines[side].set_visible(False)


def save(figure: Any, path: str | Path) -> None:
    """Write a picture, without the date where the format has one, and let go of it."""
    from matplotlib import pyplot

    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None} if Path(path).suffix == ".svg" else None)
    pyplot.close(figure)
