"""Fit subspace embeddings: k-means in each slice, or the least-squares tables of dispersed tuples."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from transformers.utils import logging

from ..modeling.codes import pack_codes
from ..modeling.errors import config_error
from ..modeling.structure_subspace import SubspaceConfig, SubspaceEmbedding
from .kmeans import assign, centroid_means, kmeans
from .source import FitSource, empty_structure, fits, recodes
from .unique_codes import make_unique

logger = logging.get_logger(__name__)


@fits(SubspaceConfig)
def fit_subspace(config: SubspaceConfig, source: FitSource) -> SubspaceEmbedding:
    """Fit the tables, and for the cluster assignment the codes, to a dense table."""
    structure = empty_structure(config, source)
    assert isinstance(structure, SubspaceEmbedding)
    weights = source.row_weights(config.frequency_power)
    if config.assignment == "dispersed":
        codes = structure.codes_of(torch.arange(structure.coded_rows))
    else:
        codes = _cluster(structure, source, weights)
    tables = torch.cat(
        [
            _tables_of(points, columns, structure.entries, weights)
            for points, columns in _slices(source.table, codes, structure.config.num_subspaces)
        ],
        dim=-1,
    )
    structure.set_tables(tables, None if config.assignment == "dispersed" else codes.cpu())
    return structure


@recodes(SubspaceConfig)
def recode_subspace(structure: SubspaceEmbedding, rows: Tensor) -> Tensor:
    """Take the nearest entry in each slice, also where the fit clustered other features than the rows."""
    assert structure.codes is not None
    count, device = structure.config.num_subspaces, structure.codes.device
    tables = [structure.codebooks.detach().float()]
    if structure.last_codebook is not None:
        tables.append(structure.last_codebook.detach().float().unsqueeze(0))
    placeholder = torch.empty(len(rows), count, dtype=torch.uint8)
    parts = [(points, table) for (points, _), table in zip(_slices(rows, placeholder, count), tables, strict=True)]
    codes = torch.cat([assign(*part, with_distances=False)[0] for part in parts], dim=1)
    if structure.config.unique_codes:
        codes = make_unique(codes, [_distance_function(*part) for part in parts], structure.entries).to(device)
    before = structure.codes.clone()
    structure.codes.copy_(pack_codes(codes, structure.code_bits))
    return (structure.codes != before).any(1)


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
    config = structure.config
    rows = len(source.table)
    if structure.entries > rows:
        raise config_error("codebook_size", structure.entries, f"the table has only {rows:,} rows to cluster")
    matrix = source.table
    if config.features == "contextual":
        if source.features is None:
            raise config_error("features", config.features, "contextual states need `texts` and a `tokenizer`")
        matrix = source.features
    if config.num_subspaces > matrix.shape[1]:
        raise config_error("num_subspaces", config.num_subspaces, f"the features are {matrix.shape[1]} wide")
    generator = torch.Generator().manual_seed(source.seed)
    placeholder = torch.empty(rows, config.num_subspaces, dtype=torch.int64)
    found, spare = [], []
    for points, _ in _slices(matrix, placeholder, config.num_subspaces):
        centroids, indices = kmeans(
            points,
            structure.entries,
            weights,
            generator,
            config.iterations,
            source.device,
            "Clustering slices",
        )
        found.append(indices)
        spare.append((points, centroids))
    codes = torch.cat(found, dim=1)
    if not config.unique_codes:
        return codes
    repaired = make_unique(codes, [_distance_function(*part) for part in spare], structure.entries)
    logger.info("Unique codes: moved %d of %d tokens.", int((repaired != codes).any(1).sum()), rows)
    return repaired


def _distance_function(points: Tensor, centroids: Tensor) -> Callable[[Tensor], Tensor]:
    def distances(ids: Tensor) -> Tensor:
        chunk = points[ids].to(centroids).transpose(0, 1)
        return torch.cdist(chunk, centroids).square().transpose(0, 1).cpu()

    return distances
