"""What other libraries make of an embedding table: their settings within a budget, their bytes, their decoded rows.

Every float counts two bytes and is rounded to float16 before anything is decoded: codebooks, rotations, scales, norms.
Codes count the bits they need, each row filled up to whole bytes, also where a library stores them wider.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

_FLOAT_BYTES = 2
_PQ_BITS = (4, 5, 6, 7, 8, 9)
_OPQ_BITS = 8
# Of OPQ's alternating steps; its default of 50 takes twice the time and gained 0.002 dB on all-MiniLM-L6-v2.
_OPQ_ROUNDS = 20
# What the library itself takes for 256 centroids where more rows are at hand.
_TRAINING_ROWS = 65536
_BLOCK = 64
_NESTED_BLOCK = 256


@dataclasses.dataclass(frozen=True)
class Fitted:
    """A finished fit.

    Attributes:
        num_bytes: of everything that the whole table needs.
        decode: returns the rows that were to be coded (n, D).
    """

    num_bytes: int
    decode: Callable[[], Floats]


@dataclasses.dataclass(frozen=True)
class Task:
    """What a peer gets.

    Attributes:
        table: rows (V, D).
        options: of the setting.
        chances: how likely a row is to be drawn for training (V,), or None: all alike.
        coded: ids of the rows to code, or None: all.
    """

    table: Floats
    options: dict[str, Any]
    chances: NDArray[np.float64] | None = None
    coded: NDArray[np.int64] | None = None

    def training_rows(self) -> Floats:
        """Return rows to train on: all of them, or as many drawn by their chances."""
        rows = len(self.table)
        if self.chances is None and rows <= _TRAINING_ROWS:
            return self.table
        chances = None if self.chances is None else self.chances / self.chances.sum()
        drawn = np.random.default_rng(0).choice(
            rows, min(rows, _TRAINING_ROWS), replace=self.chances is not None, p=chances
        )
        return self.table[drawn]

    def coded_rows(self) -> Floats:
        """Return the rows to code."""
        return self.table if self.coded is None else self.table[self.coded]


def missing(library: str) -> str | None:
    """Return why a library cannot be used, or None."""
    try:
        importlib.import_module(library)
    except (ImportError, OSError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
    return None


# What settings take.


def pq_bytes(rows: int, width: int, subspaces: int, bits: int) -> int:
    """Return the bytes of product codes; the width is filled up with zeros until the subspaces divide it."""
    return rows * math.ceil(subspaces * bits / 8) + _FLOAT_BYTES * 2**bits * (width + -width % subspaces)


def opq_bytes(rows: int, width: int, subspaces: int, bits: int, reduced: int) -> int:
    """Return the bytes of product codes of rows less their mean, turned into `reduced` dimensions."""
    return pq_bytes(rows, reduced, subspaces, bits) + _FLOAT_BYTES * width * (reduced + 1)


def vocabulary_bytes(rows: int, width: int, clusters: int) -> int:
    """Return the bytes of whole rows shared by tokens: centroids, the index of one for each token, and its norm."""
    code_bits = max(1, (clusters - 1).bit_length())
    return _FLOAT_BYTES * (clusters * width + rows) + math.ceil(rows * code_bits / 8)


def scaled_bytes(rows: int, width: int, bits: int, group: int) -> int:
    """Return the bytes of rounded values with a scale for each group of them."""
    return rows * (math.ceil(width * bits / 8) + _FLOAT_BYTES * math.ceil(width / group))


def block_bytes(values: int) -> int:
    """Return the bytes of four-bit values in blocks, whose scales are rounded to eight bits in blocks of their own."""
    blocks = math.ceil(values / _BLOCK)
    # The two tables of levels, and the offset of the scales, are floats too.
    floats = math.ceil(blocks / _NESTED_BLOCK) + 1 + 256 + 16
    return math.ceil(values / 2) + blocks + _FLOAT_BYTES * floats


# Settings within a budget.


def pq_settings(rows: int, width: int, budget: int) -> list[dict[str, Any]]:
    """Return, for several sizes of codebooks, the most subspaces that fit."""
    # The library cuts evenly: more subspaces than these would code nothing but the zeros that fill the width up.
    numbers = sorted({math.ceil(width / slice_width) for slice_width in range(1, width + 1)}, reverse=True)
    found = []
    for bits in _PQ_BITS:
        fitting = next((number for number in numbers if pq_bytes(rows, width, number, bits) <= budget), None)
        if fitting:
            found.append({"method": "pq", "subspaces": fitting, "bits": bits})
    return found


def opq_settings(
    rows: int, width: int, budget: int, variances: NDArray[np.float64], count: int
) -> list[dict[str, Any]]:
    """Return the settings that should leave the least error on a table of these variances along its axes.

    With as many bits for each subspace, the kept axes share their error evenly: it goes with their geometric mean.
    """
    falling = np.sort(np.maximum(variances, 1e-12))[::-1]
    found = []
    for slice_width in range(1, width + 1):
        subspaces = [
            number
            for number in range(1, width // slice_width + 1)
            if opq_bytes(rows, width, number, _OPQ_BITS, number * slice_width) <= budget
        ]
        if not subspaces:
            continue
        kept = max(subspaces) * slice_width
        mean = math.exp(float(np.log(falling[:kept]).mean()))
        error = float(falling[kept:].sum()) + kept * mean * 4.0 ** (-_OPQ_BITS / slice_width)
        options = {"method": "opq", "subspaces": max(subspaces), "bits": _OPQ_BITS, "reduced": kept}
        found.append((error, slice_width, options))
    return [options for _, _, options in sorted(found)[:count]]


def vocabulary_settings(rows: int, width: int, budget: int) -> list[dict[str, Any]]:
    """Return the most centroids that fit."""
    low, high = 0, rows
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if vocabulary_bytes(rows, width, middle) <= budget else (low, middle - 1)
    return [{"method": "vocabulary", "clusters": low}] if low else []


# Fits.


def fit_peer(task: Task) -> Fitted:
    """Fit what the options name."""
    return _FITS[task.options["method"]](task)


def _half(values: Any) -> Floats:
    return np.asarray(values).astype(np.float16).astype(np.float32)


def _product_quantizer(training: Floats, coded: Floats, subspaces: int, bits: int) -> Callable[[], Floats]:
    """Train product codes on some rows, code others; returns what decodes these."""
    import faiss

    faiss.omp_set_num_threads(1)
    quantizer = faiss.ProductQuantizer(training.shape[1], subspaces, bits)
    quantizer.cp.min_points_per_centroid = 1
    quantizer.train(np.ascontiguousarray(training))
    faiss.copy_array_to_vector(_half(faiss.vector_to_array(quantizer.centroids)), quantizer.centroids)
    codes = quantizer.compute_codes(np.ascontiguousarray(coded))
    return lambda: np.asarray(quantizer.decode(codes))


def _fit_pq(task: Task) -> Fitted:
    rows, width = task.table.shape
    subspaces, bits = task.options["subspaces"], task.options["bits"]
    padding = ((0, 0), (0, -width % subspaces))
    decode = _product_quantizer(
        np.pad(task.training_rows(), padding), np.pad(task.coded_rows(), padding), subspaces, bits
    )
    return Fitted(pq_bytes(rows, width, subspaces, bits), lambda: decode()[:, :width])


def _fit_opq(task: Task) -> Fitted:
    import faiss

    faiss.omp_set_num_threads(1)
    rows, width = task.table.shape
    subspaces, bits, reduced = (task.options[name] for name in ("subspaces", "bits", "reduced"))
    training = task.training_rows()
    mean = _half(training.mean(0, dtype=np.float64))
    training = training - mean
    # The rotation is trained on the product codes that it will have.
    codes = faiss.ProductQuantizer(reduced, subspaces, bits)
    codes.cp.min_points_per_centroid = 1
    transform = faiss.OPQMatrix(width, subspaces, reduced)
    transform.pq, transform.niter = codes, _OPQ_ROUNDS
    transform.train(np.ascontiguousarray(training))
    axes = _half(faiss.vector_to_array(transform.A)).reshape(reduced, width)
    turned = np.asarray((task.coded_rows() - mean) @ axes.T, dtype=np.float32)
    decode = _product_quantizer(training @ axes.T, turned, subspaces, bits)
    return Fitted(opq_bytes(rows, width, subspaces, bits, reduced), lambda: decode() @ axes + mean)


def _fit_torchao(task: Task) -> Fitted:
    import torch
    from torchao.quantization import IntxWeightOnlyConfig, quantize_
    from torchao.quantization.granularity import PerAxis, PerGroup
    from torchao.quantization.quantize_.workflows import IntxChooseQParamsAlgorithm

    rows, width = task.table.shape
    bits, group = task.options["bits"], task.options.get("group")
    embedding = torch.nn.Embedding.from_pretrained(torch.from_numpy(task.table.copy()))
    config = IntxWeightOnlyConfig(
        weight_dtype=getattr(torch, f"int{bits}"),
        granularity=PerGroup(group) if group else PerAxis(0),
        intx_choose_qparams_algorithm=IntxChooseQParamsAlgorithm[task.options.get("algorithm", "AFFINE")],
    )
    quantize_(embedding, config, filter_fn=lambda module, name: isinstance(module, torch.nn.Embedding))
    weight = embedding.weight
    # Symmetric, so its zero points are all 0 and need no bytes; its codes lie in int8 until they are packed.
    scales = np.repeat(_half(weight.scale), group or width, axis=1)
    levels = weight.qdata.numpy()
    return Fitted(scaled_bytes(rows, width, bits, group or width), lambda: levels.astype(np.float32) * scales)


def _fit_block(task: Task) -> Fitted:
    """Four bits with levels of their own, in blocks of 64; the scales of the blocks rounded again."""
    import torch
    from bitsandbytes import functional

    table = torch.from_numpy(task.table)
    codes, state = functional.quantize_4bit(
        table, blocksize=_BLOCK, quant_type=task.options["levels"], compress_statistics=True
    )
    return Fitted(block_bytes(table.numel()), lambda: functional.dequantize_4bit(codes, state).numpy())


def _fit_gguf(task: Task) -> Fitted:
    """What the Python package of GGUF quantises itself; it only reads the K-quants."""
    from gguf import GGMLQuantizationType, quants

    kind = GGMLQuantizationType[task.options["type"]]
    codes = quants.quantize(task.table, kind)
    return Fitted(codes.nbytes, lambda: quants.dequantize(codes, kind).reshape(task.table.shape))


def _fit_rows_by_largest(task: Task) -> Fitted:
    """Symmetric levels of a row, its largest value the outermost: how Gemma's mobile builds store their tables."""
    rows, width = task.table.shape
    levels = 2 ** (task.options["bits"] - 1) - 1
    scales = _half(np.maximum(np.abs(task.table).max(1, keepdims=True) / levels, 1e-7))
    codes = np.clip(np.round(task.table / scales), -levels - 1, levels)
    return Fitted(scaled_bytes(rows, width, task.options["bits"], width), lambda: codes * scales)


def _fit_rows_to_int8(task: Task) -> Fitted:
    import torch
    from bitsandbytes import functional

    rows, width = task.table.shape
    codes, largest, _ = functional.int8_vectorwise_quant(torch.from_numpy(task.table).half())
    scales = _half(largest / 127)[:, None]
    return Fitted(scaled_bytes(rows, width, 8, width), lambda: codes.numpy().astype(np.float32) * scales)


def _fit_global_int8(task: Task) -> Fitted:
    from model2vec.quantization import DType, quantize_embeddings

    codes = quantize_embeddings(task.table, DType.Int8)
    # The library drops the scale, which cosines do not need; rows do.
    scale = float(np.abs(task.table).max() / 127)
    return Fitted(codes.size + _FLOAT_BYTES, lambda: codes.astype(np.float32) * np.float32(scale))


def _fit_vocabulary(task: Task) -> Fitted:
    """K-means over whole rows of norm 1, from one start: the library's ten take ten times as long."""
    from model2vec import vocabulary_quantization
    from sklearn.cluster import KMeans

    vocabulary_quantization.KMeans = functools.partial(KMeans, n_init=1)
    rows, width = task.table.shape
    clusters = task.options["clusters"]
    centroids, tokens, norms = vocabulary_quantization.quantize_vocabulary(clusters, None, task.table)
    centroids, norms = _half(centroids), _half(norms)[:, None]
    return Fitted(vocabulary_bytes(rows, width, clusters), lambda: centroids[tokens] * norms)


_FITS: dict[str, Callable[[Task], Fitted]] = {
    "pq": _fit_pq,
    "opq": _fit_opq,
    "intx": _fit_torchao,
    "block": _fit_block,
    "gguf": _fit_gguf,
    "rows": _fit_rows_by_largest,
    "int8_rows": _fit_rows_to_int8,
    "int8": _fit_global_int8,
    "vocabulary": _fit_vocabulary,
}
