"""`python -m tests.fuzz.run`: damages tables and checkpoints for as long as it is told, and writes what came of it.

The counts go into docs/reliability.md. Whatever ends in something else than it may is printed with the seed that shows
it again, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import collections
import datetime
import multiprocessing
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from ..cases import first_cases
from ..reliability.record import write_section
from .attempts import ALLOWED, Table, attempt, tables
from .checkpoints import Checkpoint

# Of the time, what whole checkpoints get: each takes as long as twenty tables.
_SHARE_OF_CHECKPOINTS = 0.35
_STEP = 50
_MOST_MEMORY = 16 << 30


def fuzz(worker: int, workers: int, seconds: float, inputs: int, first: int) -> dict[str, dict[str, Any]]:
    """Try seeds until the time is over or there were so many inputs; return the outcomes of both kinds."""
    resource.setrlimit(resource.RLIMIT_AS, (_MOST_MEMORY, _MOST_MEMORY))
    counts: dict[str, Any] = {"tables": collections.Counter(), "checkpoints": collections.Counter()}
    spent = dict.fromkeys(counts, 0.0)
    places = [(f"{case}-{extras}", Table.of(case, extras)) for case, extras in tables()]
    start, seed = time.monotonic(), first + worker * _STEP
    with tempfile.TemporaryDirectory() as scratch:
        whole = []
        for case in first_cases("project"):
            (folder := Path(scratch, str(case))).mkdir()
            whole.append((f"checkpoint {case}", Checkpoint.of(case, folder)))
        while time.monotonic() - start < seconds and sum(counts["tables"].values()) * workers < inputs:
            is_table = spent["tables"] * _SHARE_OF_CHECKPOINTS <= spent["checkpoints"] * (1 - _SHARE_OF_CHECKPOINTS)
            kind, began = ("tables" if is_table else "checkpoints"), time.monotonic()
            for name, place in places if is_table else whole:
                for one in range(seed, seed + (_STEP if is_table else 2)):
                    outcome = attempt(place, one) if is_table else place.attempt(one)  # type: ignore[arg-type, union-attr]
                    if outcome not in ALLOWED:
                        print(f"FINDING: {name}, seed {one}: {outcome}", flush=True)
                        outcome = "FINDING"
                    counts[kind][outcome] += 1
            spent[kind] += time.monotonic() - began
            seed += workers * _STEP
    return counts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hours", type=float, default=1.0, help="stop after so many")
    parser.add_argument("--inputs", type=int, default=1 << 40, help="stop after about so many damaged tables")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seed", type=int, default=int(time.time()) << 20, help="the first; by default a new one")
    options = parser.parse_args()
    arguments = [
        (worker, options.processes, options.hours * 3600, options.inputs, options.seed)
        for worker in range(options.processes)
    ]
    began = time.monotonic()
    with multiprocessing.get_context("spawn").Pool(options.processes) as pool:
        found = pool.starmap(fuzz, arguments)
    totals = {kind: sum((one[kind] for one in found), collections.Counter()) for kind in ("tables", "checkpoints")}
    lines = [
        f"`make fuzz` on {datetime.date.today()}, seeds from {options.seed} on, "
        f"{(time.monotonic() - began) / 60:.0f} minutes on {options.processes} processes:",
        "",
        "| damaged | inputs | " + " | ".join((*ALLOWED, "anything else")) + " |",
        "|---|" + "---:|" * (len(ALLOWED) + 2),
    ]
    for kind, name in (("tables", "tables"), ("checkpoints", "whole checkpoints")):
        numbers = [sum(totals[kind].values()), *(totals[kind][outcome] for outcome in ALLOWED), totals[kind]["FINDING"]]
        lines.append(f"| {name} | " + " | ".join(f"{number:,}" for number in numbers) + " |")
    write_section("fuzz", lines)
    print("\n".join(lines))
    return 1 if any(total["FINDING"] for total in totals.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
