"""Time and peak memory of fitting subspace embeddings to a table of XLM-R's size.

    python -m benchmarks.speed.subspace_fit  # 250,002 x 768 into 96 x 256
    python -m benchmarks.speed.subspace_fit --rows 30522 --width 384 --subspaces 48

Prints one JSON object. Peak memory is the process's, less what it held before the table was made, as a share of
the table's bytes: 1.0 is the table alone.
"""

from __future__ import annotations

import argparse
import json
import threading
import time
from pathlib import Path

import torch

from ..common.library import configuration, fit_rows
from ..common.record import write


class PeakMemory:
    """Samples the resident memory of this process, in bytes."""

    def __init__(self) -> None:
        """Start from what is resident now."""
        self.start = self.peak = self._resident()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> PeakMemory:
        """Start to watch."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop watching."""
        self._stop.set()
        self._thread.join()

    @staticmethod
    def _resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    def _watch(self) -> None:
        while not self._stop.wait(0.01):
            self.peak = max(self.peak, self._resident())


def main() -> None:
    """Fit, and print what it took."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=250_002)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--subspaces", type=int, default=96)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", help="JSON file to write")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    with PeakMemory() as memory:
        table = torch.randn(options.rows, options.width)
        started = time.perf_counter()
        config = configuration("subspace", table.shape, num_subspaces=options.subspaces)
        structure = fit_rows(config, table)
        seconds = time.perf_counter() - started
    result = {
        "rows": options.rows,
        "width": options.width,
        "subspaces": options.subspaces,
        "threads": options.threads,
        "seconds": round(seconds, 1),
        "table_bytes": table.nbytes,
        "compact_bytes": structure.nbytes,
        "peak_over_table": round((memory.peak - memory.start) / table.nbytes, 3),
    }
    print(json.dumps(result))
    if options.output:
        write(options.output, result, threads=options.threads)


if __name__ == "__main__":
    main()
