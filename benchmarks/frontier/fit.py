"""One fit, measured in a process of its own: bytes, decoded rows, CPU seconds, peak memory."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..common.library import configuration, fit_rows, kept_exactly, predict_rows, private_bytes
from .peers import Fitted, Floats, Task, fit_peer

OURS = "hf_compact_embeddings"
# Other libraries draw the rows that they train on by this power of the count.
CHANCE_POWER = 0.75
_WARM_UP: dict[str, Any] = {"method": "rotated", "bits_per_weight": 1.0, "tiers": 1, "max_window_bits": 8}
_PROCESS = Path("/proc/self")


@dataclasses.dataclass(frozen=True)
class Setting:
    """What to fit.

    Attributes:
        name: of the result.
        family: settings that a plot joins to one line.
        group: settings for the same budget, of which the best counts.
        library: that fits.
        options: of our configuration, or of a peer's.
        weighted: whether the fit knows how often tokens occur.
        scored: whether to measure sentence similarity with the best of the group.
    """

    name: str
    family: str
    group: str
    library: str
    options: dict[str, Any]
    weighted: bool = False
    scored: bool = False


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What fits start from, written to a folder so that a fresh process can read it.

    Attributes:
        table: rows (V, D); None: it lies in the folder already.
        counts: of the tokens (V,).
        metric: what errors cost (D, D).
        private_ids: rows that are kept exactly.
        coded: ids of the rows to code, or None: all.
    """

    table: Floats | None
    counts: NDArray[np.float64] | None = None
    metric: NDArray[np.float64] | None = None
    private_ids: NDArray[np.int64] | None = None
    coded: NDArray[np.int64] | None = None

    def write(self, folder: Path) -> None:
        """Write what there is."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is not None:
                np.save(folder / f"{field.name}.npy", value)

    @classmethod
    def read(cls, folder: Path) -> Inputs:
        """Read what was written."""
        paths = {field.name: folder / f"{field.name}.npy" for field in dataclasses.fields(cls)}
        return cls(**{name: np.load(path) if path.exists() else None for name, path in paths.items()})


def in_fresh_process(setting: Setting, folder: Path) -> dict[str, Any]:
    """Measure a setting in a new process, forked from one that has imported the package and done nothing else."""
    context = get_context("forkserver")
    context.set_forkserver_preload([OURS, f"{OURS}.fitting"])
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(measure, setting, folder).result()


def measure(setting: Setting, folder: Path) -> dict[str, Any]:
    """Fit to the inputs in a folder, and leave the decoded rows there as decoded.npy."""
    torch.set_num_threads(1)
    inputs = Inputs.read(folder)
    fit = prepared(setting, inputs)
    before = _reset_peak()
    started = time.process_time()
    fitted = fit()
    seconds = time.process_time() - started
    peak = _memory("VmHWM")
    with torch.no_grad():
        decoded = fitted.decode()
    np.save(folder / "decoded.npy", decoded.astype(np.float32))
    return {
        "bytes": fitted.num_bytes,
        "cpu_seconds": round(seconds, 2),
        "peak_megabytes": None if peak is None or before is None else round((peak - before) / 1e6, 1),
    }


def prepared(setting: Setting, inputs: Inputs) -> Callable[[], Fitted]:
    """Import and compile what a fit needs, so that only the fit is left."""
    assert inputs.table is not None
    table = torch.from_numpy(inputs.table)
    if setting.library == OURS:
        small = table[:64, :16].clone()
        fit_rows(configuration(**_WARM_UP, shape=small.shape), small)
        return lambda: _fit_ours(setting, inputs, table)
    __import__(setting.library)
    chances = None
    if setting.weighted and inputs.counts is not None:
        chances = (inputs.counts + 1.0) ** CHANCE_POWER
    task = Task(inputs.table, setting.options, chances, inputs.coded)
    return lambda: _with_private_rows(fit_peer(task), task.table, inputs.private_ids)


def _fit_ours(setting: Setting, inputs: Inputs, table: Tensor) -> Fitted:
    private = np.empty(0, dtype=np.int64) if inputs.private_ids is None else inputs.private_ids
    config = kept_exactly(configuration(**setting.options, shape=table.shape, exact_rows=len(private)), len(private))
    evidence = {
        "counts": torch.from_numpy(inputs.counts) if setting.weighted and inputs.counts is not None else None,
        "metric": None if inputs.metric is None else torch.from_numpy(inputs.metric),
        "private_ids": torch.from_numpy(private),
    }
    if inputs.coded is None:
        structure = fit_rows(config, table, **evidence)
        return Fitted(structure.nbytes, lambda: structure.dense().numpy())
    num_bytes, decoded = predict_rows(config, table, torch.from_numpy(inputs.coded), **evidence)
    return Fitted(num_bytes, decoded.numpy)


def _with_private_rows(fitted: Fitted, table: Floats, ids: NDArray[np.int64] | None) -> Fitted:
    """Give a peer the rows that ours keeps exactly, at the same bytes: two a value and four an id."""
    if ids is None or not len(ids):
        return fitted

    def decode() -> Floats:
        decoded = fitted.decode().copy()
        decoded[ids] = table[ids].astype(np.float16)
        return decoded

    return Fitted(fitted.num_bytes + private_bytes(len(ids), table.shape[1]), decode)


def _reset_peak() -> int | None:
    """Forget the largest memory so far; returns the present one, or None where the system does not tell."""
    reset = _PROCESS / "clear_refs"
    if not reset.exists():
        return None
    reset.write_text("5")
    return _memory("VmRSS")


def _memory(name: str) -> int | None:
    """Return a figure of this process in bytes."""
    status = _PROCESS / "status"
    if not status.exists():
        return None
    return next(int(line.split()[1]) * 1024 for line in status.read_text().splitlines() if line.startswith(name))
