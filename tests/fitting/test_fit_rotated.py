"""Rotated embeddings: near the bound, within the budget, tiers and clusters where they pay."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from hf_compact_embeddings.fitting import FitSource, fit_rotated, fit_structure, trellis
from hf_compact_embeddings.fitting.allocation import code_lengths
from hf_compact_embeddings.fitting.coded_basis import basis_bytes, store_basis
from hf_compact_embeddings.fitting.principal_axes import principal_axes
from hf_compact_embeddings.fitting.spectrum import covariance, gap_db, shannon_bound
from hf_compact_embeddings.modeling.errors import CompactConfigError
from hf_compact_embeddings.modeling.huffman import coded_bytes
from hf_compact_embeddings.modeling.structure_rotated import RotatedConfig, RotatedEmbedding, RotatedLayout
from hf_compact_embeddings.modeling.tiered import INITIAL_RANGE


def fit(
    table: torch.Tensor,
    max_bytes: int,
    weights: torch.Tensor | None = None,
    metric: torch.Tensor | None = None,
    **options: int,
) -> RotatedEmbedding:
    """Fit with weights (count + 1)^1, and in a metric, where they are given."""
    counts = None if weights is None else 1e4 * weights - 1
    config = RotatedConfig(
        max_bytes=max_bytes,
        frequency_power=1.0,
        axis_power=1.0,
        metric="plain" if metric is None else "sensitivity",
        **{"tiers": 3, **options},
    )
    structure = fit_structure(config, FitSource(table, counts=counts, metric=metric))
    assert isinstance(structure, RotatedEmbedding)
    structure.check_values()
    return structure


def spectrum_table(rows: int = 3000, dim: int = 48, decay: float = 0.94, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    turn, _ = torch.linalg.qr(torch.randn(dim, dim, generator=generator))
    return torch.randn(rows, dim, generator=generator) * decay ** torch.arange(dim) @ turn + 1.0


def relative_error(table: torch.Tensor, read: torch.Tensor, weights: torch.Tensor | None = None) -> float:
    weights = torch.ones(len(table)) if weights is None else weights
    mean = (weights[:, None] * table).sum(0) / weights.sum()
    return float((weights @ (table - read).square().sum(1)) / (weights @ (table - mean).square().sum(1)))


def test_gaussian_table_is_coded_close_to_the_bound():
    table = spectrum_table()
    structure = fit(table, 26_000, tiers=1)
    error = relative_error(table, structure.dense())
    bound = shannon_bound(torch.linalg.eigvalsh(covariance(table)[1]), 8 * structure.nbytes / table.numel())
    assert 0.0 < gap_db(error, bound) < 1.5


@pytest.mark.parametrize("basis", ["coded", "float16"])
def test_the_budget_is_used_and_kept(basis: str):
    table = spectrum_table()
    config = RotatedConfig(max_bytes=20_000, tiers=3, basis=basis)
    structure = fit_structure(config, FitSource(table, private_ids=torch.tensor([3, 7])))
    assert 0.97 * 20_000 < structure.nbytes <= 20_000
    layout = structure.layout
    assert layout.tier_code_lengths == code_lengths(layout.tier_rows)
    assert structure.tier_index.numel() == coded_bytes(layout.tier_rows, layout.tier_code_lengths)


def test_tiers_spend_more_on_rows_that_weigh_more():
    table = spectrum_table()
    weights = torch.ones(len(table))
    weights[::10] = 50.0
    one, many = (fit(table, 20_000, weights=weights, tiers=tiers) for tiers in (1, 3))
    errors = [relative_error(table, structure.dense(), weights) for structure in (many, one)]
    assert errors[0] < 0.5 * errors[1]
    heavy = torch.bincount(many.positions().of()[0][::10], minlength=3)
    assert heavy[0] > 0.9 * heavy.sum()


def test_a_metric_moves_the_error_where_it_costs_less():
    table = spectrum_table(decay=1.0)
    metric = torch.diag(torch.tensor([100.0] * 8 + [0.0] * 40))
    plain, aware = (fit(table, 12_000, metric=m).dense() for m in (None, metric))
    assert relative_error(table[:, :8], aware[:, :8]) < 0.3 * relative_error(table[:, :8], plain[:, :8])


def test_single_rows_decode_as_in_the_whole():
    structure = fit(spectrum_table(400), 5_000)
    whole = structure.dense()
    for row in (0, 17, 399):
        torch.testing.assert_close(structure(torch.tensor([row]))[0], whole[row])


def test_coded_axes_keep_their_directions():
    basis, _ = torch.linalg.qr(torch.randn(50, 50, generator=torch.Generator().manual_seed(0)))
    bits = (6, 5, 5, 3)
    assert basis_bytes(bits, 50) == 39 + 35 + 35 + 21
    layout = RotatedLayout(
        coded_rows=9,
        tier_rows=(9,),
        tier_code_lengths=(),
        tier_bytes=(0,),
        tier_window_bits=(0,),
        rank=4,
        basis_bytes=basis_bytes(bits, 50),
    )
    structure = RotatedEmbedding(RotatedConfig(), layout, 9, 50)
    store_basis(structure, basis[:4].double(), bits)
    errors = (structure.axes() - basis[:4]).square().sum(1)
    assert (errors < torch.tensor([0.003, 0.006, 0.006, 0.05])).all()


def clustered_table(groups: int = 40, rows: int = 3000, dim: int = 48) -> torch.Tensor:
    """Rows that are near one of a few points, as synonyms are: far from what a Gaussian of the same spectrum gives."""
    generator = torch.Generator().manual_seed(1)
    points = torch.randn(groups, dim, generator=generator)
    group = torch.randint(groups, (rows,), generator=generator)
    return points[group] + 0.5 * torch.randn(rows, dim, generator=generator)


def test_clusters_keep_what_rows_have_in_common():
    table = clustered_table()
    alone, shared = (fit(table, 7_000, clusters=clusters) for clusters in (0, 40))
    errors = [relative_error(table, structure.dense()) for structure in (alone, shared)]
    # What no cluster can say is a fifth of the variance; the rest is nearly all said.
    assert errors[1] < 0.35 < 0.7 * errors[0]


@pytest.mark.parametrize("clusters", [2, 40, 200])
def test_clusters_stay_within_the_budget(clusters: int):
    structure = fit(clustered_table(), 9_000, clusters=clusters)
    assert 0.95 * 9_000 < structure.nbytes <= 9_000
    assert 2 <= structure.layout.clusters == len(structure.centroids()) <= clusters


def test_what_most_rows_are_like_has_the_shortest_codeword():
    table = clustered_table(groups=8)
    table[:2000] = table[0]
    structure = fit(table, 7_000, clusters=40)
    lengths, sizes = structure.layout.cluster_code_lengths(), torch.bincount(structure.cluster_of_rows()).tolist()
    assert lengths[0] == 1 < lengths[-1] and sizes == sorted(sizes, reverse=True)
    assert structure.cluster_index.numel() == coded_bytes(sizes, lengths) < 0.8 * 3000 * 3 // 8


def test_rows_that_hardly_count_have_shorter_codewords():
    table, weights = clustered_table(), torch.ones(3000)
    weights[:2400] = 1e-3
    structure = fit(table, 7_000, weights=weights, clusters=40)
    bits = torch.tensor(structure.layout.cluster_code_lengths())[structure.cluster_of_rows()].double()
    assert bits[:2400].mean() < 0.5 * bits[2400:].mean()


def test_rows_that_share_a_cluster_and_have_no_bits_are_its_centroid():
    structure = fit(clustered_table(), 5_500, clusters=40, tiers=1)
    assert structure.layout.tier_bytes == (0,)
    rows, cluster = structure.dense().detach(), structure.cluster_of_rows()
    centroids = structure.centroids().detach() @ structure.axes().detach() + structure.means.detach()
    torch.testing.assert_close(rows, centroids[cluster])


@pytest.mark.parametrize("clusters", [0, 13])
def test_a_random_start_is_as_wide_as_a_dense_one(clusters: int):
    config = RotatedConfig(init="random", bits_per_weight=2.0, clusters=clusters)
    structure = RotatedEmbedding(config, RotatedEmbedding.random_layout(config, 500, 64), 500, 64)
    structure.reset_parameters()
    structure.check_values()
    assert structure.layout.clusters == clusters
    assert 0.7 * INITIAL_RANGE < float(structure.dense().detach().std()) < 1.4 * INITIAL_RANGE


def test_a_small_table_has_few_clusters_or_none():
    assert RotatedConfig(clusters=256).most_clusters(60) == 15
    for rows, most in ((60, 15), (7, 0)):
        source = FitSource(clustered_table(rows=rows))
        structure = fit_structure(RotatedConfig(bits_per_weight=16.0, clusters=256), source)
        assert structure.layout.clusters <= most and (structure.cluster_index is None) == (most == 0)


def test_a_budget_below_the_smallest_plan_is_refused():
    with pytest.raises(CompactConfigError, match="the smallest plan"):
        fit(spectrum_table(400), 50)


@pytest.mark.parametrize("clusters", [0, 64])
def test_a_fit_makes_nothing_as_large_as_the_table(clusters: int) -> None:
    table = torch.randn(60_000, 192, generator=torch.Generator().manual_seed(0))
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), keywords=None):  # noqa: ANN001, ANN202
            nonlocal largest
            result = function(*arguments, **(keywords or {}))
            for tensor in result if isinstance(result, tuple | list) else [result]:
                if isinstance(tensor, Tensor) and tensor.untyped_storage().data_ptr() != table.data_ptr():
                    largest = max(largest, tensor.untyped_storage().nbytes())
            return result

    source = FitSource(table)
    with Watch():
        structure = fit_structure(RotatedConfig(bits_per_weight=0.1, clusters=clusters), source)
    assert (structure.layout.clusters > 0) == (clusters > 0)
    assert largest / table.nbytes <= 0.4


def test_how_long_coding_takes_is_told_before(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(fit_rotated, "tell", told.append)
    fit(spectrum_table(), 3000 * 6)
    assert not told, "a small table is done before it is read"
    monkeypatch.setattr(fit_rotated, "_MANY_ROWS", 3000)
    monkeypatch.setattr(trellis, "seconds_to_encode", lambda rows, bits, window: rows * sum(bits) / 1000)
    structure = fit(spectrum_table(), 3000 * 6)
    row_bits = zip(structure.layout.tier_rows, structure.layout.tier_bytes, strict=True)
    seconds = sum(rows * 8 * size for rows, size in row_bits) / 1000
    assert told == [f"Coding 3,000 rows will take about {seconds:.0f} seconds."]


def test_axes_that_are_stored_inexactly_or_as_zero_are_projected_to_at_the_least_error() -> None:
    table = spectrum_table().double()
    generator = torch.Generator().manual_seed(0)
    metric = torch.diag(torch.rand(48, generator=generator) + 0.1).double()
    axes = principal_axes(table, torch.ones(3000), metric)
    stored = (axes.basis + 0.02 * torch.randn(48, 48, generator=generator))[:40]
    stored[3] = 0.0
    coordinates = (table - axes.mean) @ axes.projection_to(stored)
    assert float(coordinates[:, 3].abs().max()) < 1e-9
    best = torch.linalg.lstsq((stored @ axes.root).T, ((table - axes.mean) @ axes.root).T, driver="gelsd").solution.T
    assert torch.allclose(coordinates @ stored, best @ stored, atol=1e-9)
