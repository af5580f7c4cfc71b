"""What coding rows as trellis codes takes, how close it comes to the bound, and fits of a real table's `rotated`.

    python -m benchmarks.speed.trellis --threads 1 --output benchmarks/speed/results/trellis.json

Seconds are of the process, all threads together, as other programs share the machine; the least of some rounds.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import AutoModel

from ..common.library import configuration, find_model, fit_rows, gap_db, through_rings
from ..common.record import layout, write

# Bits a value, values a row, and bits a window; none: what rows of that length get.
ROWS: tuple[tuple[int, int, int | None], ...] = (
    (1, 24, None),
    (1, 40, None),
    (1, 80, None),
    (1, 128, None),
    (1, 192, None),
    (1, 512, None),
    (1, 512, 10),
    (1, 512, 8),
    (2, 64, None),
    (2, 256, None),
    (3, 128, None),
)
RATIOS = (25, 100, 500)
_Found = TypeVar("_Found")


def timed(call: Callable[[], _Found], rounds: int) -> tuple[float, _Found]:
    """Return the least seconds of this process that a call takes, and what it returns."""
    times = []
    for _ in range(rounds):
        started = time.process_time()
        found = call()
        times.append(time.process_time() - started)
    return min(times), found


def rings(count: int, rounds: int) -> list[dict[str, Any]]:
    """Code Gaussian rows of all lengths."""
    results = []
    for bits, axes, window in ROWS:
        points = torch.randn(count, axes, generator=torch.Generator().manual_seed(0))
        # The first call compiles.
        through_rings(points[:2], bits, window)
        seconds, read = timed(partial(through_rings, points, bits, window), rounds)
        error = float((read - points).square().mean() / points.square().mean())
        found = {
            "bits": bits,
            "axes": axes,
            "window_bits": window,
            "seconds_per_1000_rows": round(1e3 * seconds / count, 4),
        }
        results.append(found | {"db_above_bound": round(gap_db(error, 4.0**-bits), 3)})
    return results


def fits(table: Tensor) -> list[dict[str, Any]]:
    """Fit a table at all ratios; errors are relative to what the mean row leaves."""
    spread = (table - table.mean(0)).square().sum()
    results = []
    for ratio in RATIOS:
        config = configuration("rotated", table.shape, ratio=ratio)
        seconds, structure = timed(partial(fit_rows, config, table), 1)
        error = float((structure.dense().detach() - table).square().sum() / spread)
        results.append({"ratio": ratio, "seconds": round(seconds, 1), "error_db": round(gap_db(error, 1.0), 4)})
    return results


def main() -> None:
    """Measure, and print two tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", help="folder or Hub name; default: all-MiniLM-L6-v2")
    parser.add_argument("--rows", type=int, default=4096, help="Gaussian rows of each length")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", help="JSON file to write")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    coded = rings(options.rows, options.rounds)
    header = ["bits x values", "window", "seconds / 1,000 rows", "dB above the bound"]
    lines = [
        [
            f"{one['bits']} x {one['axes']}",
            str(one["window_bits"] or "as given"),
            f"{one['seconds_per_1000_rows']:.3f}",
            f"{one['db_above_bound']:.2f}",
        ]
        for one in coded
    ]
    print(layout(header, lines))
    table = AutoModel.from_pretrained(find_model(options.model)).get_input_embeddings().weight.detach().float()
    fitted = fits(table)
    print()
    lines = [[f"{one['ratio']}x", f"{one['seconds']:.1f}", f"{one['error_db']:.3f}"] for one in fitted]
    print(layout(["fit", "seconds", "error in dB"], lines))
    if options.output:
        write(options.output, {"rows": coded, "fits": fitted}, threads=options.threads)


if __name__ == "__main__":
    main()
