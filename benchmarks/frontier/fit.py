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
from frontier_peers import Fitted, Floats, Task, fit_peer
from numpy.typing import NDArray

from hf_compact_embeddings.fitting import FitSource, fit_structure, predictor_of
from hf_compact_embeddings.modeling.structure import make_config

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
    if setting.library == OURS:
        fit_structure(make_config(**_WARM_UP), FitSource(torch.from_numpy(inputs.table[:64, :16].copy())))
        return lambda: _fit_ours(setting, inputs)
    __import__(setting.library)
    chances = None
    if setting.weighted and inputs.counts is not None:
        chances = (inputs.counts + 1.0) ** CHANCE_POWER
    task = Task(inputs.table, setting.options, chances, inputs.coded)
    return lambda: _with_private_rows(fit_peer(task), task.table, inputs.private_ids)


def _fit_ours(setting: Setting, inputs: Inputs) -> Fitted:
    private = np.empty(0, dtype=np.int64) if inputs.private_ids is None else inputs.private_ids
    config = dataclasses.replace(make_config(**setting.options), private_rows=len(private), mask_padding=False)
    source = FitSource(
        torch.from_numpy(inputs.table),
        counts=torch.from_numpy(inputs.counts) if setting.weighted and inputs.counts is not None else None,
        metric=None if inputs.metric is None else torch.from_numpy(inputs.metric),
        private_ids=torch.from_numpy(private),
    )
    if inputs.coded is None:
        structure = fit_structure(config, source)
        return Fitted(structure.nbytes, lambda: structure.dense().numpy())
    predictor = predictor_of(config)
    assert predictor is not None
    num_bytes, decoded = predictor(config, source, torch.from_numpy(inputs.coded))
    return Fitted(num_bytes, decoded.detach().numpy)


def _with_private_rows(fitted: Fitted, table: Floats, ids: NDArray[np.int64] | None) -> Fitted:
    """Give a peer the rows that ours keeps exactly, at the same bytes: two a value and four an id."""
    if ids is None or not len(ids):
        return fitted

    def decode() -> Floats:
        decoded = fitted.decode().copy()
        decoded[ids] = table[ids].astype(np.float16)
        return decoded

    return Fitted(fitted.num_bytes + private_bytes(len(ids), table.shape[1]), decode)


def private_bytes(count: int, width: int) -> int:
    """Return the bytes of rows that are kept exactly."""
    return count * (2 * width + 4)


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
