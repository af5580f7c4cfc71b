"""Runs the frontier benchmark: fits, judges, keeps a record, and lays the results out."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Iterable
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ..common import record
from ..common.library import gap_db, shannon_bound
from ..common.record import layout
from .fit import Setting, in_fresh_process
from .peers import Floats, missing
from .settings import LIBRARIES

# What the best method is to reach: decibels above the bound at a rate, and below each of faiss's methods.
GOALS = {"2 bits": 1.4, "1 bit": 1.1, "0.3 bits": 0.5}
ADVANTAGE = 1.2
_PACKAGES = ("faiss-cpu", "torchao", "bitsandbytes", "model2vec")


class Judge:
    """Measures how far decoded rows are from the original ones."""

    def __init__(self, rows: Floats, num_values: int, variances: Tensor, weights: NDArray[np.float64] | None) -> None:
        """Keep the rows (n, D) that are decoded, the size of the whole table, and what its rows weigh (n,)."""
        self.rows, self.num_values, self.variances = rows, num_values, variances
        ones = np.ones(len(rows))
        self.weights = {"relative_mse": ones} if weights is None else {"relative_mse": ones, "weighted_mse": weights}
        self.energy = {name: self._energy(weights) for name, weights in self.weights.items()}

    def __call__(self, decoded: Floats, num_bytes: int) -> dict[str, float]:
        """Return the errors, the rate and the distance to the bound."""
        errors = np.square(decoded.astype(np.float64) - self.rows).sum(1)
        found = {name: float(weights @ errors) / self.energy[name] for name, weights in self.weights.items()}
        bits = 8 * num_bytes / self.num_values
        bound = shannon_bound(self.variances, bits)
        return {
            "ratio": 32 / bits,
            "bits_per_weight": bits,
            **found,
            "shannon_bound": bound,
            "gap_db": gap_db(found["relative_mse"], bound),
        }

    def _energy(self, weights: NDArray[np.float64]) -> float:
        mean = weights @ self.rows / weights.sum()
        return float(weights @ np.square(self.rows - mean).sum(1))


class Results:
    """The results so far, in a JSON file."""

    def __init__(self, path: Path, again: str | None) -> None:
        """Read what there is, but for results whose names contain `again`."""
        self.path = path
        self.found: list[dict[str, Any]] = []
        if path.exists():
            stored = json.loads(path.read_text(encoding="utf-8"))["results"]
            self.found = [result for result in stored if again is None or again not in result["name"]]

    def find(self, setting: Setting, source: str) -> dict[str, Any] | None:
        """Return the result of exactly this setting."""
        same = {"source": source, **dataclasses.asdict(setting)}
        return next((result for result in self.found if all(result.get(k) == v for k, v in same.items())), None)

    def add(self, result: dict[str, Any]) -> None:
        """Add or replace a result, and write the file."""
        key = ("source", "name")
        self.found = [other for other in self.found if any(other[k] != result[k] for k in key)] + [result]
        self.write()

    def keep(self, names: Iterable[tuple[str, str]]) -> None:
        """Drop those of settings that are no longer asked for, and put the others in order."""
        order = {name: position for position, name in enumerate(names)}
        self.found = [result for result in self.found if (result["source"], result["name"]) in order]
        self.found.sort(key=lambda result: order[result["source"], result["name"]])

    def write(self, **more: Any) -> None:
        """Write all of it."""
        record.write(self.path, self.found, versions=record.versions(*_PACKAGES), seed=0, **more)


def run(
    settings: list[Setting],
    source: str,
    folder: Path,
    judge: Judge,
    results: Results,
    scores: Callable[[Floats], dict[str, float]] | None = None,
) -> None:
    """Measure all settings that have no result yet; of each group, score the one with the least error."""
    for group, members in groupby(settings, key=lambda setting: setting.group):
        todo = list(members)
        known = [result for setting in todo if (result := results.find(setting, source))]
        if len(known) == len(todo) and any(result.get("best") for result in known):
            continue
        error = "weighted_mse" if todo[0].weighted and "weighted_mse" in judge.weights else "relative_mse"
        found: list[dict[str, Any]] = []
        best, best_rows = None, None
        for setting in todo:
            measured = in_fresh_process(setting, folder)
            decoded = np.load(folder / "decoded.npy")
            result = {"source": source, **dataclasses.asdict(setting), **measured}
            result |= judge(decoded, measured["bytes"])
            found.append(result)
            if best is None or result[error] < best[error]:
                best, best_rows = result, decoded
        assert best is not None and best_rows is not None
        best["best"] = True
        if scores is not None and todo[0].scored:
            best |= scores(best_rows)
        for result in found:
            results.add(result)
        shown = {k: v for k, v in best.items() if isinstance(v, float)}
        print(f"{source}: {group}", json.dumps({k: round(v, 4) for k, v in shown.items()}), file=sys.stderr, flush=True)


def checks(results: list[dict[str, Any]], goals: dict[str, float] = GOALS) -> list[dict[str, Any]]:
    """Compare the distances to the bound with what they are to be."""
    best = {result["group"]: result for result in results if result.get("best")}
    found = []
    for label, limit in goals.items():
        ours = best.get(f"rotated, {label}")
        if ours is None:
            continue
        gap = ours["gap_db"]
        found.append({"what": f"dB above the bound, {label}", "limit": limit, "found": gap, "met": gap <= limit})
        for family in ("faiss PQ", "faiss OPQ"):
            peer = best.get(f"{family}, {label}")
            if peer is not None:
                # Each against the bound at its own bytes, so that bytes a peer leaves unspent do not count against it.
                won = peer["gap_db"] - gap
                what = f"dB better than {family}, {label}"
                found.append({"what": what, "limit": ADVANTAGE, "found": won, "met": won >= ADVANTAGE})
    return found


def show(results: list[dict[str, Any]], score_names: list[str]) -> str:
    """Lay the best of each group out as a table."""
    header = ["setting", "bytes", "ratio", "rel. MSE", "weighted", "gap dB", *score_names, "CPU s", "peak MB"]
    rows = []
    for result in results:
        if result.get("best"):
            weighted = result.get("weighted_mse")
            rows.append(
                [
                    result["name"],
                    f"{result['bytes']:,}",
                    f"{result['ratio']:.1f}x",
                    f"{result['relative_mse']:.4f}",
                    "-" if weighted is None else f"{weighted:.4f}",
                    f"{result['gap_db']:.2f}",
                    *(f"{result[name]:.2f}" if name in result else "-" for name in score_names),
                    f"{result['cpu_seconds']:.1f}",
                    "-" if result["peak_megabytes"] is None else f"{result['peak_megabytes']:.0f}",
                ]
            )
    return layout(header, rows)


def show_checks(found: list[dict[str, Any]]) -> str:
    """Lay the checks out as a table."""
    rows = [
        [check["what"], f"{check['limit']:.2f}", f"{check['found']:.2f}", "yes" if check["met"] else "NO"]
        for check in found
    ]
    return layout(["what", "goal", "found", "met"], rows)


def available() -> set[str]:
    """Return the libraries at hand, and say which are left out and why."""
    found = {"hf_compact_embeddings"}
    for library in LIBRARIES:
        reason = missing(library)
        if reason is None:
            found.add(library)
        else:
            print(f"{library} is left out ({reason}): pip install 'hf_compact_embeddings[peers]'", file=sys.stderr)
    return found
