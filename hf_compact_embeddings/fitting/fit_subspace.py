"""Fit subspace embeddings: k-means in each slice, or the least-squares tables of dispersed tuples."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import torch
from torch import Tensor
from transformers.utils import logging

from ..modeling.errors import CompactConfigError, config_error
from ..modeling.structure_subspace import SubspaceConfig, SubspaceEmbedding, smallest_base
from .kmeans import centroid_means, kmeans
from .methods import Need, empty_structure, register_method
from .source import FitSource
from .unique_codes import make_unique

logger = logging.get_logger(__name__)


def fit_subspace(options: SubspaceConfig, source: FitSource) -> SubspaceEmbedding:
    """Fit the tables, and for the cluster assignment the codes, to a dense table."""
    structure: SubspaceEmbedding = empty_structure(options, source)
    weights = source.row_weights(options.frequency_power)
    if options.assignment == "dispersed":
        codes = structure.codes_of(torch.arange(structure.layout.coded_rows))
    else:
        codes = _cluster(structure, source, weights)
    tables = torch.cat(
        [
            _tables_of(points, columns, structure.entries, weights)
            for points, columns in _slices(source.table, codes, structure.layout.num_subspaces)
        ],
        dim=-1,
    )
    structure.set_tables(tables, None if options.assignment == "dispersed" else codes.cpu())
    return structure


def _slices(matrix: Tensor, codes: Tensor, count: int) -> list[tuple[Tensor, Tensor]]:
    """Cut (V, D) into equal slices (V, f', d) and, after a remainder, the wider last one; each with its codes."""
    width, remainder = divmod(matrix.shape[1], count)
    if not remainder:
        return [(matrix.unflatten(1, (count, width)), codes)]
    cut = (count - 1) * width
    equal = [] if count == 1 else [(matrix[:, :cut].unflatten(1, (count - 1, width)), codes[:, :-1])]
    return [*equal, (matrix[:, cut:].unsqueeze(1), codes[:, -1:])]


def _tables_of(points: Tensor, codes: Tensor, entries: int, weights: Tensor | None) -> Tensor:
    """Return the mean of the slices that share an entry, side by side (n, f' * d)."""
    means, _ = centroid_means(points, codes, entries, weights)
    return means.transpose(0, 1).flatten(1).cpu()


def _cluster(structure: SubspaceEmbedding, source: FitSource, weights: Tensor | None) -> Tensor:
    """Find tuples (V, f) by k-means over slices of the rows, or of other features of the tokens."""
    options, count = structure.options, structure.layout.num_subspaces
    rows = len(source.table)
    if structure.entries > rows:
        raise config_error("codebook_size", structure.entries, f"the table has only {rows:,} rows to cluster")
    matrix = source.table
    if options.features == "contextual":
        if source.features is None:
            raise config_error("features", options.features, "contextual states need a `tokenizer`")
        matrix = source.features
    if count > matrix.shape[1]:
        raise config_error("num_subspaces", count, f"the features are {matrix.shape[1]} wide")
    generator = torch.Generator().manual_seed(source.seed)
    placeholder = torch.empty(rows, count, dtype=torch.int64)
    found, spare = [], []
    for points, _ in _slices(matrix, placeholder, count):
        centroids, indices = kmeans(
            points,
            structure.entries,
            weights,
            generator,
            options.iterations,
            source.device,
            "Clustering slices",
        )
        found.append(indices)
        spare.append((points, centroids))
    codes = torch.cat(found, dim=1)
    if not options.unique_codes:
        return codes
    repaired = make_unique(codes, [_distance_function(*part) for part in spare], structure.entries)
    logger.info("Unique codes: moved %d of %d tokens.", int((repaired != codes).any(1).sum()), rows)
    return repaired


def _distance_function(points: Tensor, centroids: Tensor) -> Callable[[Tensor], Tensor]:
    def distances(ids: Tensor) -> Tensor:
        chunk = points[ids].to(centroids).transpose(0, 1)
        return torch.cdist(chunk, centroids).square().transpose(0, 1).cpu()

    return distances


# Codebook sizes worth trying, and with how many subspaces at most: beyond, smaller ones do as well in less time.
_CANDIDATE_ENTRIES = {16: 1 << 30, 256: 1 << 30, 1024: 48}
_CANDIDATE_DIGITS = (2, 3, 4)


def _candidates(rows: int, width: int, max_bytes: int) -> list[SubspaceConfig]:
    """Return, for several codebook sizes, the most subspaces that fit; and the paper's dispersed tuples."""
    found = []
    for entries, most in _CANDIDATE_ENTRIES.items():
        with contextlib.suppress(CompactConfigError):
            options = SubspaceConfig(codebook_size=entries)
            count = SubspaceEmbedding.layout_for(options, rows, width, max_bytes).num_subspaces
            if count <= most and entries <= rows // 2:
                found.append(SubspaceConfig(num_subspaces=count, codebook_size=entries))
    if not found:
        for count in _CANDIDATE_DIGITS:
            entries = smallest_base(rows, count)
            if entries * width * SubspaceConfig().float_bytes <= max_bytes:
                found.append(SubspaceConfig(num_subspaces=count, codebook_size=entries, assignment="dispersed"))
    return found


def _needs(options: SubspaceConfig) -> frozenset[Need]:
    contextual = options.assignment == "cluster" and options.features == "contextual"
    return frozenset({"counts", "contextual_states"} if contextual else {"counts"})


register_method(structure=SubspaceEmbedding, fit=fit_subspace, needs=_needs, candidates=_candidates)
