"""`python -m tests.reliability.run`: kills and interrupts runs of every verb that writes, and counts what they leave.

The counts go into docs/reliability.md. The first run that leaves something else than the old or the new ends it.
"""

from __future__ import annotations

import argparse
import collections
import datetime
import random
import signal
import sys
import tempfile
from pathlib import Path

from .kills import NEW, NOTHING, OLD, Scene, kill
from .record import write_section


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as home:
        scene = Scene(Path(home))
        each = -(-options.kills // (2 * len(scene.verbs)))
        for name, verb in scene.verbs.items():
            seconds = scene.seconds(verb)
            counts: dict[int, collections.Counter[str]] = {}
            in_time = collections.Counter[int]()
            for by in (signal.SIGKILL, signal.SIGINT):
                draw, counts[by] = random.Random(f"{options.seed} {name} {by}"), collections.Counter()
                while in_time[by] < each:
                    found, was_running = kill(scene, name, seconds, draw, by)
                    if was_running:
                        in_time[by] += 1
                        counts[by][found] += 1
            total = sum(counts.values(), collections.Counter[str]())
            numbers = [*(in_time[by] for by in counts), *(total[state] for state in (NOTHING, OLD, NEW))]
            rows.append(f"| {name} | " + " | ".join(map(str, numbers)) + " |")
            print(rows[-1], flush=True)
            lines = [
                f"`make kills` on {datetime.date.today()}, seed {options.seed}; what was there then, always whole:",
                "",
                "| verb | SIGKILL | SIGINT | nothing | the old | the new |",
                "|---|---:|---:|---:|---:|---:|",
                *rows,
            ]
            # After each verb: the whole run may take an hour.
            write_section("kills", lines)
    return 0


if __name__ == "__main__":
    sys.exit(main())
