"""Fit hash embeddings to an existing vocabulary: token strings are hashed, and the tables found by least squares.

Hashes carry no meaning, so the fit is poor: it is a start for training, not a replacement.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from ..modeling.errors import CompactConfigError, config_error
from ..modeling.hash_variants import CHUNK_ENTRIES, AddVariant, BucketVariant, LinearVariant, PoolVariant, ProjVariant
from ..modeling.hashing import SIGNATURE_BITS, WordHasher, expand_bits, unpack_signatures
from ..modeling.structure_hash import HashConfig, HashEmbedding
from .methods import empty_structure, register_method
from .reproducible import product_over_rows, symmetric_eigen, total
from .source import FitSource

_ROWS_PER_CHUNK = 4096
# Of the largest eigenvalue: directions below it are those that the features do not have.
_SMALLEST_SHARE = 1e-7

_Chunks = Iterator[tuple[Tensor, Tensor, Tensor]]


def fit_hash(options: HashConfig, source: FitSource) -> HashEmbedding:
    """Hash the tokens and fit what the variant learns to a dense table."""
    if options.source is None:
        options = dataclasses.replace(options, source="vocabulary")
    if options.source != "vocabulary":
        raise config_error("source", options.source, 'a dense table has a vocabulary: fit it with "vocabulary"')
    structure: HashEmbedding = empty_structure(options, source)
    # What no row asks for, such as an empty bucket, keeps its start.
    for parameter in structure.parameters():
        parameter.zero_()
    _hash_tokens(structure, source)
    weights = source.row_weights(options.frequency_power)
    weights = torch.ones(len(source.table)) if weights is None else weights
    mean = product_over_rows(weights.double(), source.table.double().cpu()) / total(weights)
    structure.generic_vector.copy_(mean)
    words = structure.hashed
    if isinstance(words, BucketVariant):
        _fit_buckets(words, structure, source, weights, mean.float())
    elif isinstance(words, PoolVariant):
        _fit_pool(words, structure, source, weights, mean.float())
    elif isinstance(words, LinearVariant):
        _fit_linear(words, structure, source, weights, mean.float())
    return structure


def _hash_tokens(structure: HashEmbedding, source: FitSource) -> None:
    """Store the bits of the tokens' strings, as they stand in the vocabulary."""
    settings = structure.options.hash_settings
    if source.token_strings is None:
        if settings.hashing == "lsh":
            raise CompactConfigError("`tokenizer` is missing: `hashing` 'lsh' depends on how the tokens are written.")
        structure.hash_ids()
        return
    if settings.pieces is not None:
        raise config_error("pieces", settings.pieces, "tokens of a vocabulary are hashed by their n-grams")
    hasher = WordHasher(settings)
    for start in range(0, structure.layout.coded_rows, _ROWS_PER_CHUNK):
        strings = source.token_strings[start : min(start + _ROWS_PER_CHUNK, structure.layout.coded_rows)]
        if settings.hashing == "md":
            bits = expand_bits(torch.tensor([hasher.word_id(string) for string in strings]))
        else:
            bits = unpack_signatures(torch.tensor([hasher.signature(string) for string in strings]))
        structure.set_bits(start, bits)


def _chunks(structure: HashEmbedding, source: FitSource, weights: Tensor, mean: Tensor) -> _Chunks:
    """Yield bits (n, 128), what is left of the rows without their mean (n, D), and weights (n,)."""
    for start in range(0, structure.layout.coded_rows, _ROWS_PER_CHUNK):
        rows = slice(start, min(start + _ROWS_PER_CHUNK, structure.layout.coded_rows))
        ids = torch.arange(rows.start, rows.stop)
        residual = source.table[rows].float().cpu() - mean
        yield structure.bits_of(ids), residual, weights[rows]


def _fit_buckets(
    words: BucketVariant, structure: HashEmbedding, source: FitSource, weights: Tensor, mean: Tensor
) -> None:
    """Give each bucket the mean of its rows."""
    totals = torch.zeros(len(words.table))
    for bits, residual, weight in _chunks(structure, source, weights, mean):
        buckets = words.entries_of(bits).squeeze(-1)
        words.table.index_add_(0, buckets, residual * weight.unsqueeze(-1))
        totals.index_add_(0, buckets, weight)
    words.table.div_(totals.clamp(min=torch.finfo(torch.float32).tiny).unsqueeze(-1))


def _fit_pool(words: PoolVariant, structure: HashEmbedding, source: FitSource, weights: Tensor, mean: Tensor) -> None:
    """Solve for the shared table; all chunks keep the same weight."""

    def shares(bits: Tensor) -> Tensor:
        entries = words.entries_of(bits)
        empty = torch.zeros(len(entries), CHUNK_ENTRIES)
        return empty.scatter_add_(1, entries, torch.full(entries.shape, 1 / entries.shape[1]))

    solution, _ = _least_squares(shares, _chunks(structure, source, weights, mean), intercept=False)
    words.table.copy_(solution)


def _fit_linear(
    words: LinearVariant, structure: HashEmbedding, source: FitSource, weights: Tensor, mean: Tensor
) -> None:
    """Solve for the map of the bits, and move the generic vector by what the map leaves."""

    def features(bits: Tensor) -> Tensor:
        return bits.float() - 0.5 if isinstance(words, AddVariant) else words.features(bits, torch.float32)

    solution, intercept = _least_squares(features, _chunks(structure, source, weights, mean), intercept=True)
    structure.generic_vector.add_(intercept)
    matrix = solution.T
    if isinstance(words, AddVariant):
        # The two columns of a bit pull in opposite directions, so that they add no offset.
        words.ones.copy_(matrix * (math.sqrt(SIGNATURE_BITS) / 2))
        words.zeros.copy_(-words.ones)
    elif isinstance(words, ProjVariant):
        assert words.scales is not None
        words.rows.copy_(F.normalize(matrix, dim=-1))
        words.scales.copy_(matrix.norm(dim=-1))


def _least_squares(
    features: Callable[[Tensor], Tensor], chunks: _Chunks, intercept: bool
) -> tuple[Tensor, Tensor | float]:
    """Return the map (k, D) from features to rows with the least weighted squared error, and its intercept (D,)."""
    gram: Tensor | float = 0.0
    moment: Tensor | float = 0.0
    for bits, residual, weight in chunks:
        known = features(bits)
        if intercept:
            known = torch.cat([known, torch.ones(len(known), 1)], dim=1)
        weighted = known * weight.unsqueeze(-1)
        gram = gram + product_over_rows(weighted, known).double()
        moment = moment + product_over_rows(weighted, residual).double()
    assert isinstance(gram, Tensor) and isinstance(moment, Tensor)
    values, vectors = symmetric_eigen(gram)
    kept = values > _SMALLEST_SHARE * values[-1]
    solution = (vectors[:, kept] / values[kept]) @ (vectors[:, kept].T @ moment)
    solution = solution.float()
    return (solution[:-1], solution[-1]) if intercept else (solution, 0.0)


# Never a candidate: hashes carry no meaning.
register_method(
    structure=HashEmbedding,
    fit=fit_hash,
    needs=lambda options: frozenset({"counts", "token_strings"}),
    candidates=lambda rows, width, max_bytes: [],
)
