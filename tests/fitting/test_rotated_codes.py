from __future__ import annotations

import pytest
import torch

from hf_compact_embeddings.fitting import FitSource, fit_structure
from hf_compact_embeddings.fitting.fit_rotated import as_structure
from hf_compact_embeddings.fitting.rotated_codes import RotatedCodes, decode_basis, encode_basis
from hf_compact_embeddings.fitting.rotated_codes import fit_rotated_codes as fit_rotated
from hf_compact_embeddings.fitting.spectrum import covariance, gap_db, shannon_bound
from hf_compact_embeddings.fitting.tiers import count_bytes
from hf_compact_embeddings.modeling.errors import CompactConfigError
from hf_compact_embeddings.modeling.prefix_codes import named_bytes
from hf_compact_embeddings.modeling.structure_rotated import RotatedConfig, RotatedEmbedding
from hf_compact_embeddings.modeling.tiered import INITIAL_RANGE


def spectrum_table(rows: int = 3000, dim: int = 48, decay: float = 0.94, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    turn, _ = torch.linalg.qr(torch.randn(dim, dim, generator=generator))
    return torch.randn(rows, dim, generator=generator) * decay ** torch.arange(dim) @ turn + 1.0


def decoded(table: torch.Tensor, codes: RotatedCodes) -> torch.Tensor:
    return as_structure(codes, RotatedConfig(), FitSource(table)).dense().detach()


def relative_error(table: torch.Tensor, read: torch.Tensor, weights: torch.Tensor | None = None) -> float:
    weights = torch.ones(len(table)) if weights is None else weights
    mean = (weights[:, None] * table).sum(0) / weights.sum()
    return float((weights @ (table - read).square().sum(1)) / (weights @ (table - mean).square().sum(1)))


def test_gaussian_table_is_coded_close_to_the_bound():
    table = spectrum_table()
    codes = fit_rotated(table, 26_000, tiers=1)
    error = relative_error(table, decoded(table, codes))
    bound = shannon_bound(torch.linalg.eigvalsh(covariance(table)[1]), 8 * codes.plan.num_bytes / table.numel())
    assert 0.0 < gap_db(error, bound) < 1.5
    assert error == pytest.approx(codes.plan.distortion, rel=0.1)


def test_stored_bytes_are_what_the_plan_counts_and_stay_within_the_budget():
    table = spectrum_table()
    codes = fit_rotated(table, 20_000, tiers=3)
    structure = as_structure(codes, RotatedConfig(), FitSource(table))
    stored = sum(part.numel() for part in (*codes.codes, *codes.basis_codes))
    rest = 2 * codes.gains.numel() + 2 * codes.means.numel() + 2 * len(codes.basis_gains)
    tables = len(codes.plan.basis_bits) * (len(codes.codes) + 1)
    # Three names of two bits each would take this; the tier of most rows has a name of one.
    largest = max(codes.plan.sizes)
    tags = -(-(2 * len(table) - largest) // 8)
    assert stored + rest + tables + tags == codes.plan.num_bytes == structure.nbytes == count_bytes(codes.plan, 48, 2)
    assert 0.97 * 20_000 < codes.plan.num_bytes <= 20_000


def test_tiers_spend_more_on_rows_that_weigh_more():
    table = spectrum_table()
    weights = torch.ones(len(table))
    weights[::10] = 50.0
    one = fit_rotated(table, 20_000, weights=weights, tiers=1)
    many = fit_rotated(table, 20_000, weights=weights, tiers=3)
    assert relative_error(table, decoded(table, many), weights) < 0.5 * relative_error(
        table, decoded(table, one), weights
    )
    heavy = torch.bincount(many.tier_of_row[::10].long(), minlength=len(many.codes))
    assert heavy[0] > 0.9 * heavy.sum()


def test_a_metric_moves_the_error_where_it_costs_less():
    table = spectrum_table(decay=1.0)
    metric = torch.diag(torch.tensor([100.0] * 8 + [0.0] * 40))
    plain, aware = (decoded(table, fit_rotated(table, 12_000, metric=m)) for m in (None, metric))
    assert relative_error(table[:, :8], aware[:, :8]) < 0.3 * relative_error(table[:, :8], plain[:, :8])


def test_single_rows_decode_as_in_the_whole():
    table = spectrum_table(400)
    codes = fit_rotated(table, 5_000, tiers=3)
    structure = as_structure(codes, RotatedConfig(), FitSource(table))
    whole = structure.dense()
    for row in (0, 17, 399):
        torch.testing.assert_close(structure(torch.tensor([row]))[0], whole[row])


def test_basis_codes_keep_the_directions():
    basis, _ = torch.linalg.qr(torch.randn(50, 50, generator=torch.Generator().manual_seed(0)))
    codes, gains = encode_basis(basis[:4].double(), (6, 5, 5, 3))
    read = decode_basis(codes, (6, 5, 5, 3), gains, 50)
    errors = (read - basis[:4]).square().sum(1)
    assert (errors < torch.tensor([0.003, 0.006, 0.006, 0.05])).all()
    assert [part.numel() for part in codes] == [39, 35, 35, 21]


def clustered_table(groups: int = 40, rows: int = 3000, dim: int = 48) -> torch.Tensor:
    """Rows that are near one of a few points, as synonyms are: far from what a Gaussian of the same spectrum gives."""
    generator = torch.Generator().manual_seed(1)
    points = torch.randn(groups, dim, generator=generator)
    group = torch.randint(groups, (rows,), generator=generator)
    return points[group] + 0.5 * torch.randn(rows, dim, generator=generator)


def test_clusters_keep_what_rows_have_in_common():
    table = clustered_table()
    alone, shared = (fit_rotated(table, 7_000, clusters=clusters) for clusters in (0, 40))
    errors = [relative_error(table, decoded(table, codes)) for codes in (alone, shared)]
    # What no cluster can tell is a fifth of the variance; the rest is nearly all told.
    assert errors[1] < 0.35 < 0.7 * errors[0]
    assert errors[1] == pytest.approx(shared.plan.distortion, rel=0.1)


@pytest.mark.parametrize("clusters", [2, 40, 200])
def test_bytes_of_clusters_are_what_the_plan_counts_and_stay_within_the_budget(clusters: int):
    table = clustered_table()
    codes = fit_rotated(table, 9_000, clusters=clusters)
    structure = as_structure(codes, RotatedConfig(), FitSource(table))
    assert 0.95 * 9_000 < codes.plan.num_bytes == structure.nbytes <= 9_000
    assert 2 <= structure.config.clusters == len(structure.centres()) <= clusters
    structure.check_values()


def test_what_most_rows_are_like_has_the_shortest_name():
    table = clustered_table(groups=8)
    table[:2000] = table[0]
    structure = as_structure(fit_rotated(table, 7_000, clusters=40), RotatedConfig(), FitSource(table))
    lengths, named = structure.config.cluster_name_lengths(), torch.bincount(structure.cluster_of_rows()).tolist()
    assert lengths[0] == 1 < lengths[-1] and named == sorted(named, reverse=True)
    assert structure.cluster_tags is not None
    assert structure.cluster_tags.numel() == named_bytes(named, lengths) < 0.8 * RotatedConfig.tag_bytes(8, 3000)


def test_rows_that_hardly_count_are_named_in_fewer_bits():
    table, weights = clustered_table(), torch.ones(3000)
    weights[:2400] = 1e-3
    codes = fit_rotated(table, 7_000, weights=weights, clusters=40)
    assert codes.clusters is not None
    bits = torch.tensor(codes.clusters.name_lengths)[codes.clusters.of_row].double()
    assert bits[:2400].mean() < 0.5 * bits[2400:].mean()


def test_rows_that_share_a_cluster_and_have_no_bits_are_its_centre():
    table = clustered_table()
    structure = as_structure(fit_rotated(table, 5_500, clusters=40, tiers=1), RotatedConfig(), FitSource(table))
    assert structure.config.tier_bytes == (0,)
    rows, cluster = structure.dense().detach(), structure.cluster_of_rows()
    centres = structure.centres().detach() @ structure.axes().detach() + structure.means.detach()
    torch.testing.assert_close(rows, centres[cluster])


@pytest.mark.parametrize("clusters", [0, 13])
def test_a_random_start_is_as_wide_as_a_dense_one(clusters: int):
    config = RotatedConfig(init="random", bits_per_weight=2.0, clusters=clusters)
    structure = RotatedEmbedding(config, 500, 64)
    structure.reset_parameters()
    assert structure.config.clusters == clusters
    assert 0.7 * INITIAL_RANGE < float(structure.dense().detach().std()) < 1.4 * INITIAL_RANGE


def test_a_small_table_has_few_clusters_or_none():
    assert RotatedConfig(clusters=256).most_clusters(60) == 15
    for rows, most in ((60, 15), (7, 0)):
        source = FitSource(clustered_table(rows=rows))
        structure = fit_structure(RotatedConfig(bits_per_weight=16.0, clusters=256), source)
        assert structure.config.clusters <= most and (structure.cluster_tags is None) == (most == 0)


def test_a_budget_below_the_smallest_plan_is_refused():
    with pytest.raises(CompactConfigError, match="too small"):
        fit_rotated(spectrum_table(400), 50)
