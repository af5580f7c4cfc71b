"""Which settings the frontier benchmark compares: ours and other libraries', at equal bytes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..common.library import candidates
from .fit import OURS, Setting
from .peers import opq_settings, pq_settings, vocabulary_settings

# Bits for each value, everything counted, at which errors are compared.
RATES = {"2 bits": 2.0, "1 bit": 1.0, "0.3 bits": 0.3}
# And how many times smaller than in float32 the table is where sentence similarity is compared.
RATIOS = (97, 25, 500, 150, 8)
LIBRARIES = ("faiss", "torchao", "bitsandbytes", "model2vec")
_FREQUENCY_POWER = 0.75


@dataclasses.dataclass(frozen=True)
class Table:
    """What settings depend on.

    Attributes:
        rows: V.
        width: D.
        reserved: bytes of rows that every method keeps exactly.
        variances: along the axes of the rows (D,).
        weighted_variances: the same with rows weighted by token frequency, or None.
    """

    rows: int
    width: int
    reserved: int
    variances: NDArray[np.float64]
    weighted_variances: NDArray[np.float64] | None = None

    def whole(self, bits: float) -> int:
        """Return the bytes that the whole table may take, for so many bits a value."""
        return int(self.rows * self.width * bits / 8)

    def budget(self, bits: float) -> int:
        """Return what of it is left for coded rows."""
        return self.whole(bits) - self.reserved


def all_settings(table: Table) -> list[Setting]:
    """Return every setting for a real table."""
    found: list[Setting] = []
    for label, bits in RATES.items():
        found += unweighted(table, label, bits)
        found += _factorized(table, label, bits, 0.0)
        found += _subspaces(table, label, bits, 0.0)
    for ratio in RATIOS:
        found += _at_ratio(table, ratio)
    return [*found, *_scalars(table)]


def unweighted(table: Table, label: str, bits: float, opq: int = 2) -> list[Setting]:
    """Return our best methods and faiss, none of which knows how often tokens occur."""
    budget = table.budget(bits)
    return [
        _budgeted("rotated", "", label, table.whole(bits)),
        _budgeted("blocks", "", label, table.whole(bits)),
        *_peer("faiss", "faiss PQ", label, pq_settings(table.rows, table.width, budget)),
        *_peer("faiss", "faiss OPQ", label, opq_settings(table.rows, table.width, budget, table.variances, opq)),
    ]


def _at_ratio(table: Table, ratio: int) -> Iterator[Setting]:
    label, bits = f"{ratio}x", 32 / ratio
    budget = table.budget(bits)
    for method in ("rotated", "blocks"):
        suffix = ", frequency and sensitivity"
        yield _budgeted(method, suffix, label, table.whole(bits), weighted=True, scored=True, metric="sensitivity")
    if ratio in (8, 25, 97):
        yield from _factorized(table, label, bits, _FREQUENCY_POWER)
    if ratio in (25, 97):
        yield _budgeted("rotated", ", frequency", label, table.whole(bits), weighted=True, scored=True)
        yield from _peer(
            "model2vec",
            "model2vec vocabulary",
            label,
            vocabulary_settings(table.rows, table.width, budget),
            scored=True,
        )
        if table.weighted_variances is not None:
            turned = opq_settings(table.rows, table.width, budget, table.weighted_variances, 1)
            yield from _peer("faiss", "faiss OPQ, rows drawn by frequency", label, turned, weighted=True, scored=True)
    if ratio in (25, 97, 500):
        yield from _subspaces(table, label, bits, _FREQUENCY_POWER)
        yield _budgeted("rotated", "", label, table.whole(bits), scored=True)
        yield from _peer("faiss", "faiss PQ", label, pq_settings(table.rows, table.width, budget), scored=True)
        turned = opq_settings(table.rows, table.width, budget, table.variances, 1)
        yield from _peer("faiss", "faiss OPQ", label, turned, scored=True)


def _scalars(table: Table) -> Iterator[Setting]:
    """Yield what rounds values one by one, at the size that it has."""
    for bits, group in ((8, None), (4, None), (4, 32), (2, 32)):
        options = {"method": "scalar", "bits": bits, "group_size": group}
        yield _setting("scalar", _rounded(bits, group), OURS, options, scored=True)
    for bits, group in ((8, None), (4, 32), (2, 32)):
        for algorithm in ("AFFINE", "HQQ_SCALE_ONLY") if bits < 8 else ("AFFINE",):
            options = {"method": "intx", "bits": bits, "group": group, "algorithm": algorithm}
            yield _setting("TorchAO", _rounded(bits, group), "torchao", options, algorithm, scored=True)
    yield _setting("bitsandbytes", "int8 by rows", "bitsandbytes", {"method": "int8_rows"}, scored=True)
    yield _setting("bitsandbytes", "NF4", "bitsandbytes", {"method": "block", "levels": "nf4"}, scored=True)
    yield _setting("model2vec int8", "one scale", "model2vec", {"method": "int8"}, scored=True)


def _rounded(bits: int, group: int | None) -> str:
    return f"{bits} bits" if group is None else f"{bits} bits, groups of {group}"


def _budgeted(
    method: str, suffix: str, label: str, budget: int, weighted: bool = False, scored: bool = False, **options: object
) -> Setting:
    # Only what says so in its name weighs errors by the model's sensitivity.
    given = {"method": method, "max_bytes": budget, "metric": "plain", **options}
    return _setting(f"{method}{suffix}", label, OURS, given, weighted=weighted, scored=scored)


def _subspaces(table: Table, label: str, bits: float, power: float) -> Iterator[Setting]:
    family = "subspace, frequency" if power else "subspace"
    for planned in candidates("subspace", table.rows, table.width, table.budget(bits)):
        if planned["assignment"] == "cluster":
            sizes = {name: planned[name] for name in ("num_subspaces", "codebook_size")}
            detail = "{num_subspaces} of {codebook_size}".format(**sizes)
            options = {"method": "subspace", **sizes, "frequency_power": power}
            yield _setting(family, label, OURS, options, detail, weighted=power > 0, scored=power > 0)


def _factorized(table: Table, label: str, bits: float, power: float) -> Iterator[Setting]:
    family = "factorized (SVD), frequency" if power else "factorized (SVD)"
    for int8_codes in (False, True):
        options = {
            "method": "factorized",
            "fit": "svd",
            "max_bytes": table.whole(bits),
            "int8_codes": int8_codes,
            "frequency_power": power,
        }
        detail = "8-bit codes" if int8_codes else "16-bit codes"
        yield _setting(family, label, OURS, options, detail, weighted=power > 0, scored=power > 0)


def _peer(
    library: str,
    family: str,
    label: str,
    found: list[dict[str, Any]],
    weighted: bool = False,
    scored: bool = False,
) -> Iterator[Setting]:
    for options in found:
        detail = " ".join(f"{name}={value}" for name, value in options.items() if name != "method")
        yield _setting(family, label, library, options, detail, weighted, scored)


def _setting(
    family: str,
    label: str,
    library: str,
    options: dict[str, Any],
    detail: str = "",
    weighted: bool = False,
    scored: bool = False,
) -> Setting:
    group = f"{family}, {label}"
    name = f"{group} ({detail})" if detail else group
    return Setting(name, family, group, library, options, weighted, scored)
