"""Tables with made spectra, so that nothing is tuned to one real table."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModel

from ..common.library import covariance, find_model
from .fit import OURS, Inputs
from .measuring import Judge, Results, available, checks, run, show, show_checks
from .peers import Floats
from .settings import RATES, Table, unweighted

Variances = NDArray[np.float64]

# As many rows as a middling word list, as wide as GloVe's vectors.
_ROWS, _WIDTH = 20_000, 200
_LARGE_ROWS, _LARGE_WIDTH, _LARGE_CODED = 250_002, 768, 20_000
_CHUNK = 8192
# Decibels above the bound that the large table is to reach: its basis weighs less.
LARGE_GOALS = {"2 bits": 1.0, "1 bit": 0.8, "0.3 bits": 0.4}
LARGE = "250,002 x 768 Gaussian rows, spectrum of all-MiniLM-L6-v2"


def power_law(exponent: float) -> Variances:
    """Return variances that fall with a power of the axis."""
    return np.arange(1.0, _WIDTH + 1) ** np.float64(-exponent)


def dominated() -> Variances:
    """Return variances of which five axes hold six tenths, and the others share the rest evenly."""
    variances = np.ones(_WIDTH)
    variances[:5] = 0.6 / 0.4 * (_WIDTH - 5) / 5
    return variances


SPECTRA: dict[str, Callable[[], Variances]] = {
    "power law, exponent 0.5": lambda: power_law(0.5),
    "power law, exponent 1": lambda: power_law(1.0),
    "power law, exponent 1.5": lambda: power_law(1.5),
    "flat": lambda: power_law(0.0),
    "five dominating axes": dominated,
    "heavy-tailed rows": lambda: power_law(1.0),
}


def stretched(variances: Variances, width: int) -> Variances:
    """Return a spectrum of the same shape on another number of axes, of sum 1."""
    falling = np.sort(np.maximum(variances, 1e-12))[::-1]
    old, new = ((np.arange(count) + 0.5) / count for count in (len(falling), width))
    found = np.exp(np.interp(new, old, np.log(falling)))
    return found / found.sum()


def gaussian_rows(rows: int, variances: Variances, seed: int, heavy_tails: bool = False) -> Iterator[Floats]:
    """Yield rows of a table with these variances along axes that are turned at random, some at a time."""
    generator = np.random.default_rng(seed)
    width = len(variances)
    axes, _ = np.linalg.qr(generator.standard_normal((width, width)))
    mixing = (np.sqrt(variances)[:, None] * axes).astype(np.float32)
    for start in range(0, rows, _CHUNK):
        points = generator.standard_normal((min(_CHUNK, rows - start), width), dtype=np.float32)
        if heavy_tails:
            # Student's t with four degrees of freedom, the same factor for the whole row.
            points /= np.sqrt(generator.chisquare(4, (len(points), 1)) / 4).astype(np.float32)
        yield points @ mixing


def write_table(path: Path, rows: int, width: int, chunks: Iterator[Floats]) -> None:
    """Write a table that is never held as a whole."""
    table = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(rows, width))
    start = 0
    for chunk in chunks:
        table[start : start + len(chunk)] = chunk
        start += len(chunk)
    table.flush()


def made_tables(options: argparse.Namespace, results: Results) -> None:
    """Measure our best method and faiss on every made table; on the large one, where faiss takes long, ours only."""
    weight = AutoModel.from_pretrained(find_model(options.model)).get_input_embeddings().weight.detach()
    shape = stretched(torch.linalg.eigvalsh(covariance(weight)[1]).numpy(), _LARGE_WIDTH)
    coded = np.sort(np.random.default_rng(1).permutation(_LARGE_ROWS)[:_LARGE_CODED])
    chunks = gaussian_rows(_LARGE_ROWS, shape, 0)
    _measure(LARGE, _LARGE_ROWS, _LARGE_WIDTH, chunks, coded, options, results, {OURS})
    here = available()
    for name, variances in SPECTRA.items():
        chunks = gaussian_rows(_ROWS, variances(), 0, name == "heavy-tailed rows")
        _measure(name, _ROWS, _WIDTH, chunks, None, options, results, here)
    outcome = checks([result for result in results.found if result["source"] == LARGE], LARGE_GOALS)
    shapes = {name: [_ROWS, _WIDTH] for name in SPECTRA} | {LARGE: [_LARGE_ROWS, _LARGE_WIDTH]}
    results.write(shapes=shapes, checks=outcome)
    for name in (*SPECTRA, LARGE):
        print(f"{name}\n\n{show([result for result in results.found if result['source'] == name], [])}\n")
    print(show_checks(outcome))


def _measure(
    name: str,
    rows: int,
    width: int,
    chunks: Iterator[Floats],
    coded: NDArray[np.int64] | None,
    options: argparse.Namespace,
    results: Results,
    here: set[str],
) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_table(folder / "table.npy", rows, width, chunks)
        Inputs(None, coded=coded).write(folder)
        table = np.load(folder / "table.npy", mmap_mode="c")
        variances = torch.linalg.eigvalsh(covariance(torch.from_numpy(table))[1])
        facts = Table(rows, width, 0, variances.numpy())
        settings = [
            setting
            for label, bits in RATES.items()
            for setting in unweighted(facts, label, bits, opq=1)
            if setting.library in here and (options.only is None or options.only in setting.name)
        ]
        judged = np.array(table) if coded is None else table[coded]
        del table
        run(settings, name, folder, Judge(judged, rows * width, variances, None), results)
