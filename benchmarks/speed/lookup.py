"""Looking rows up and scoring all rows, against `nn.Embedding` and the dense product, in eager mode on the CPU.

    python -m benchmarks.speed.lookup --threads 1 --output benchmarks/speed/results/lookup.json

The two sides of each ratio run in turn, so that a machine that others use slows both; medians are given.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

import hf_compact_embeddings as hce

from ..common.library import configuration, fit_rows, kept_exactly, private_bytes
from ..common.record import layout, write

SHAPES = ((30_522, 384), (30_522, 768), (250_002, 768))
# Of `scalar`, and bytes a row of `subspace`; `blocks` and `rotated` are measured at sizes that people use.
BITS = (8, 4)
SUBSPACES = (8, 16, 96)
RATIOS = (25, 100)
TOKENS = 1024
QUERIES = (1, 32)


def ratio(compact: Callable[[], object], dense: Callable[[], object], rounds: int) -> tuple[float, float]:
    """Return the median seconds of the compact side, and its median over the dense side's.

    On one thread they are those that it had a core to itself: others on the machine stop what takes milliseconds, and
    leave alone what takes less.
    """
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds + 1):
        for side, call in zip(times, (compact, dense), strict=True):
            started = clock()
            call()
            side.append(clock() - started)
    compact_time, dense_time = (statistics.median(side[1:]) for side in times)
    return compact_time, compact_time / dense_time


def settings(rows: int, width: int) -> dict[str, hce.StructureConfig]:
    """Return what to measure: random codes and a padding row kept exactly, so that nothing waits for a fit."""

    def drawn(method: str, **options: Any) -> hce.StructureConfig:
        return kept_exactly(configuration(method, (rows, width), exact_rows=1, init="random", **options), 1)

    return {
        **{f"scalar, {bits} bits": drawn("scalar", bits=bits) for bits in BITS},
        **{f"subspace, f = {count}": drawn("subspace", num_subspaces=count) for count in SUBSPACES},
        **{
            f"{method}, {ratio}x": drawn(method, max_bytes=4 * rows * width // ratio + private_bytes(1, width))
            for method in ("blocks", "rotated")
            for ratio in RATIOS
        },
    }


@torch.no_grad()
def main() -> None:
    """Measure every shape."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=51)
    parser.add_argument("--output", help="JSON file to write")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    results = []
    for count, width in SHAPES:
        weight = torch.randn(count, width)
        dense = torch.nn.Embedding(count, width, _weight=weight)
        for name, config in settings(count, width).items():
            compact = fit_rows(config, weight)
            compact.set_private_rows(torch.tensor([0]), weight[:1])
            found = {"rows": count, "width": width, "method": name, **times(compact, dense, options.rounds)}
            results.append(found)
    header = ["table", "method", f"{TOKENS} look-ups", "over dense"]
    for queries in QUERIES:
        header += [f"scores of {queries}", "over dense"]
    print(layout(header, [cells(result) for result in results]))
    if options.output:
        write(options.output, results, threads=options.threads)


def times(compact: hce.CompactEmbedding, dense: torch.nn.Embedding, rounds: int) -> dict[str, float]:
    """Return milliseconds and ratios to the dense side, of look-ups and of scores for each number of queries."""
    rows, width = dense.weight.shape
    ids = torch.randint(rows, (8, TOKENS // 8))

    def dense_scores(hidden: torch.Tensor) -> torch.Tensor:
        return hidden @ dense.weight.T

    pairs: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
        "look_up": (lambda: compact(ids), lambda: dense(ids))
    }
    for queries in QUERIES:
        hidden = torch.randn(queries, width)
        pairs[f"scores_{queries}"] = (partial(compact.project, hidden), partial(dense_scores, hidden))
    found: dict[str, float] = {}
    for name, pair in pairs.items():
        seconds, relative = ratio(*pair, rounds if name == "look_up" else 11)
        found |= {f"{name}_ms": round(seconds * 1e3, 4), f"{name}_over_dense": round(relative, 3)}
    return found


def cells(result: dict[str, Any]) -> list[str]:
    """Return a line of the table."""
    found = [f"{result['rows']:,} x {result['width']}", result["method"]]
    for name in ("look_up", *(f"scores_{queries}" for queries in QUERIES)):
        found += [f"{result[f'{name}_ms']:.2f} ms", f"{result[f'{name}_over_dense']:.2f}"]
    return found


if __name__ == "__main__":
    main()
