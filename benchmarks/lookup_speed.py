"""Looking rows up and scoring all rows, against `nn.Embedding` and the dense product, in eager mode on the CPU.

    python benchmarks/lookup_speed.py

The two sides of each ratio run in turn, so that a machine that others use slows both; medians are printed.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

import hf_compact_embeddings as hce
from hf_compact_embeddings.cli.outcome import table
from hf_compact_embeddings.fitting import FitSource, fit_structure

SHAPES = ((30_522, 384), (30_522, 768), (250_002, 768))
# Bytes a row of `subspace`; the other two are measured at the middle one's.
SUBSPACES = (4, 8, 16)
TOKENS = 1024
QUERIES = (1, 32)


def ratio(compact: Callable[[], object], dense: Callable[[], object], rounds: int) -> tuple[float, float]:
    """Return the median seconds of the compact side, and its median over the dense side's."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds + 1):
        for side, call in zip(times, (compact, dense), strict=True):
            started = time.perf_counter()
            call()
            side.append(time.perf_counter() - started)
    compact_time, dense_time = (statistics.median(side[1:]) for side in times)
    return compact_time, compact_time / dense_time


def settings(rows: int) -> dict[str, hce.StructureConfig]:
    """Return what to measure: random codes and a padding row kept exactly, so that nothing waits for a fit."""
    given: dict[str, Any] = {"init": "random", "private_rows": 1, "mask_padding": False}
    budget = SUBSPACES[len(SUBSPACES) // 2] * rows
    return {
        **{f"subspace, f = {count}": hce.SubspaceConfig(num_subspaces=count, **given) for count in SUBSPACES},
        "blocks": hce.BlocksConfig(max_bytes=budget, **given),
        "rotated": hce.RotatedConfig(max_bytes=budget, **given),
    }


@torch.no_grad()
def main() -> None:
    """Measure every shape."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=51)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = []
    for count, width in SHAPES:
        weight = torch.randn(count, width)
        dense = torch.nn.Embedding(count, width, _weight=weight)
        ids = torch.randint(count, (8, TOKENS // 8))
        for name, config in settings(count).items():
            compact = fit_structure(config, FitSource(weight))
            compact.set_private_rows(torch.tensor([0]), weight[:1])
            cells = [f"{count:,} x {width}", name]
            seconds, relative = ratio(lambda: compact(ids), lambda: dense(ids), options.rounds)  # noqa: B023
            cells += [f"{seconds * 1e6:.0f} us", f"{relative:.2f}"]
            for queries in QUERIES:
                hidden = torch.randn(queries, width)
                seconds, relative = ratio(lambda: compact.project(hidden), lambda: hidden @ weight.T, 11)  # noqa: B023
                cells += [f"{seconds * 1e3:.2f} ms", f"{relative:.2f}"]
            rows.append(cells)
    header = ["table", "method", f"{TOKENS} look-ups", "over dense"]
    for queries in QUERIES:
        header += [f"scores of {queries}", "over dense"]
    print(table(header, rows))


if __name__ == "__main__":
    main()
