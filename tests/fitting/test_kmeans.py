"""Weighted k-means: it finds what there is to find, whatever the chunks."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_compact_embeddings.fitting import kmeans as module
from hf_compact_embeddings.fitting.kmeans import assign, centroid_means, kmeans

CPU = torch.device("cpu")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def run(points: torch.Tensor, entries: int, weights: torch.Tensor | None = None, seed: int = 0, rounds: int = 25):
    return kmeans(points, entries, weights, generator(seed), rounds, CPU)


def error_of(points: torch.Tensor, centroids: torch.Tensor, weights: torch.Tensor | None = None) -> float:
    """Return the (weighted) squared error when every point uses its nearest centroid, the slow way."""
    nearest = torch.cdist(points.transpose(0, 1).double(), centroids.double()).square().amin(-1)
    return float((nearest if weights is None else nearest * weights.double()).sum())


@given(rows=st.integers(1, 40), problems=st.integers(1, 3), width=st.integers(1, 5), entries=st.integers(1, 9))
def test_points_go_to_the_nearest_centroid(rows: int, problems: int, width: int, entries: int) -> None:
    points = torch.randn(rows, problems, width, generator=generator(rows))
    centroids = torch.randn(problems, entries, width, generator=generator(entries))
    indices, distances = assign(points, centroids)
    every = torch.cdist(points.transpose(0, 1), centroids).square()
    assert indices.shape == distances.shape == (rows, problems)
    torch.testing.assert_close(distances.T, every.amin(-1), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(
        every.gather(2, indices.T.long().unsqueeze(-1)).squeeze(-1), every.amin(-1), atol=1e-4, rtol=1e-4
    )


def test_assigning_in_chunks_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    # Whole numbers, so that sums are exact in any order and ties are broken alike.
    points = torch.randint(-9, 9, (203, 3, 4), generator=generator()).float()
    centroids = torch.randint(-9, 9, (3, 10, 4), generator=generator(1)).float()
    weights = torch.randint(1, 5, (203,), generator=generator(2)).float()
    whole = assign(points, centroids)
    means = centroid_means(points, whole[0], 10, weights)
    for size in (1, 100, 1_000, 5_000):
        monkeypatch.setattr(module, "_DISTANCES_PER_CHUNK", {"cpu": size, "cuda": size})
        monkeypatch.setattr(module, "_VALUES_PER_CHUNK", size)
        assert all(torch.equal(one, other) for one, other in zip(assign(points, centroids), whole, strict=True))
        chunked = centroid_means(points, whole[0], 10, weights)
        for one, other in zip(chunked, means, strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_clustering_in_chunks_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    points = torch.randn(300, 2, 3, generator=generator())
    whole = run(points, 12)
    monkeypatch.setattr(module, "_DISTANCES_PER_CHUNK", {"cpu": 500, "cuda": 500})
    monkeypatch.setattr(module, "_VALUES_PER_CHUNK", 100)
    chunked = run(points, 12)
    assert torch.equal(chunked[1], whole[1])
    torch.testing.assert_close(chunked[0], whole[0], atol=1e-5, rtol=1e-5)


@given(seed=st.integers(0, 500))
def test_means_are_weighted_means(seed: int) -> None:
    points = torch.randn(30, 2, 3, generator=generator(seed))
    indices = torch.randint(4, (30, 2), generator=generator(seed))
    weights = torch.rand(30, generator=generator(seed)) * (torch.rand(30, generator=generator(seed + 1)) > 0.3)
    means, mass = centroid_means(points, indices, 5, weights)
    assert means.shape == (2, 5, 3) and mass.shape == (2, 5)
    for problem in range(2):
        for entry in range(5):
            own = indices[:, problem] == entry
            total = weights[own].sum()
            torch.testing.assert_close(mass[problem, entry], total, atol=1e-5, rtol=1e-5)
            if total > 0:
                wanted = (points[own, problem] * weights[own, None]).sum(0) / total
                torch.testing.assert_close(means[problem, entry], wanted, atol=1e-5, rtol=1e-4)
    assert means.isfinite().all()


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("weighted", [False, True])
def test_separate_points_are_found_exactly(seed: int, weighted: bool) -> None:
    """As many centroids as places: whatever the start, no place is left without one."""
    places = torch.randn(3, 10, 4, generator=generator(seed)) * 10
    chosen = torch.cat([torch.arange(10), torch.randint(10, (190,), generator=generator(seed))])
    points = places[:, chosen].transpose(0, 1)
    weights = torch.rand(200, generator=generator(seed)) + 0.1 if weighted else None
    centroids, indices = run(points, 10, weights, seed)
    assert error_of(points, centroids) == pytest.approx(0.0, abs=1e-3)
    assert all(len(indices[:, problem].unique()) == 10 for problem in range(3))


@pytest.mark.parametrize("seed", range(8))
def test_two_far_clouds_are_told_apart(seed: int) -> None:
    cloud = torch.randn(100, 1, 4, generator=generator(seed))
    points = torch.cat([cloud[:30], cloud[30:] + 100])
    centroids, indices = run(points, 2, seed=seed)
    assert len(indices[:30].unique()) == len(indices[30:].unique()) == 1
    assert indices[0] != indices[-1]
    wanted = torch.stack([points[:30].mean(0), points[30:].mean(0)], dim=1)
    torch.testing.assert_close(centroids[:, [int(indices[0]), int(indices[-1])]], wanted, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("weighted", [False, True])
def test_it_beats_random_rows(weighted: bool) -> None:
    points = torch.randn(2_000, 2, 4, generator=generator())
    weights = torch.rand(2_000, generator=generator(1)).pow(4) if weighted else None
    centroids, _ = run(points, 16, weights)
    found = error_of(points, centroids, weights)
    for seed in range(5):
        rows = torch.randperm(2_000, generator=generator(seed))[:16]
        assert found < 0.85 * error_of(points, points[rows].transpose(0, 1), weights)


def test_weights_move_centroids_to_what_weighs_more() -> None:
    points = torch.randn(1_000, 1, 6, generator=generator())
    weights = torch.where(torch.arange(1_000) < 100, 100.0, 0.01)
    weighted, _ = run(points, 8, weights)
    plain, _ = run(points, 8)
    assert error_of(points, weighted, weights) < 0.9 * error_of(points, plain, weights)
    assert error_of(points, plain) < error_of(points, weighted)


def test_more_rounds_do_not_harm() -> None:
    points = torch.randn(1_500, 1, 4, generator=generator())
    errors = [error_of(points, run(points, 16, rounds=rounds)[0]) for rounds in (1, 3, 25)]
    assert errors[0] > errors[1] > errors[2]


def test_a_sample_serves_many_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    points = torch.randn(6_000, 1, 3, generator=generator())
    weights = torch.rand(6_000, generator=generator(1)) + 0.01
    whole = error_of(points, run(points, 8, weights)[0], weights)
    monkeypatch.setattr(module, "_SAMPLES_PER_CENTROID", 64)
    for chosen in (weights, None):
        centroids, indices = run(points, 8, chosen)
        assert indices.shape == (6_000, 1), "all rows are assigned, not only the sample"
        assert torch.equal(indices, assign(points, centroids)[0])
    centroids, _ = run(points, 8, weights)
    assert error_of(points, centroids, weights) < 1.15 * whole


def test_seeds_repeat_and_differ() -> None:
    points = torch.randn(500, 2, 3, generator=generator())
    one, again, other = run(points, 10, seed=1), run(points, 10, seed=1), run(points, 10, seed=2)
    assert torch.equal(one[0], again[0]) and torch.equal(one[1], again[1])
    assert not torch.equal(one[0], other[0])


@pytest.mark.parametrize("weights", [None, torch.arange(1, 21).float()], ids=["plain", "weighted"])
def test_few_or_equal_points(weights: torch.Tensor | None) -> None:
    for points in (torch.zeros(20, 2, 3), torch.ones(20, 2, 3), torch.randn(20, 2, 3, generator=generator())):
        centroids, indices = run(points, 20, weights)
        assert centroids.isfinite().all()
        assert error_of(points, centroids) == pytest.approx(0.0, abs=1e-3)
        assert int(indices.max()) < 20


def test_half_precision_points_are_clustered_in_float32() -> None:
    points = torch.randn(400, 2, 3, generator=generator())
    centroids, _ = run(points.half(), 8)
    assert centroids.dtype == torch.float32
    assert error_of(points, centroids) < 1.1 * error_of(points, run(points, 8)[0])
