"""Weighted k-means of many small problems at once, in chunks of rows."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor

from ..progress import Step, step

# Distances held at once: 2^21 float32 values are 8 MB, which stays in a CPU's cache. A GPU wants more.
_DISTANCES_PER_CHUNK = {"cpu": 1 << 21, "cuda": 1 << 26}
_VALUES_PER_CHUNK = 1 << 22
# Beyond this many rows for each centroid, a sample gives the same centroids in less time.
_SAMPLES_PER_CENTROID = 128
# Problems are solved some at a time, so that their samples stay small: 2^23 float32 values are 32 MB.
_SAMPLE_VALUES = 1 << 23
# A round that improves the error by less than this share is the last.
_TOLERANCE = 1e-4


def assign(
    points: Tensor, centroids: Tensor, progress: Step | None = None, with_distances: bool = True
) -> tuple[Tensor, Tensor]:
    """Find the nearest centroid of every point, problem by problem.

    Args:
        points: (V, P, d), the P problems side by side.
        centroids: (P, n, d).
        progress: advanced by the points done.
        with_distances: whether the distances are wanted; for many points they take as much as the indices.

    Returns:
        The indices (V, P), of a type no wider than needed, and the squared distances (V, P), or none (0, P).
    """
    rows, problems, _ = points.shape
    entries = centroids.shape[1]
    dtype = torch.uint8 if entries <= 256 else torch.int32
    indices = torch.empty(rows, problems, dtype=dtype, device=centroids.device)
    distances = torch.empty(rows if with_distances else 0, problems, device=centroids.device)
    half_norms = centroids.square().sum(-1).unsqueeze(1) / 2
    transposed = centroids.transpose(1, 2).contiguous()
    budget = _DISTANCES_PER_CHUNK.get(centroids.device.type, _DISTANCES_PER_CHUNK["cuda"])
    step = min(rows, max(1, budget // (problems * entries)))
    buffer = torch.empty(problems * step * entries, device=centroids.device)
    for start in range(0, rows, step):
        chunk = points[start : start + step].to(centroids).transpose(0, 1)
        # |x - c|^2 / 2 less |x|^2 / 2, which is the same for all centroids. A buffer that is used again
        # saves the page faults of a fresh one, which cost more than the product.
        score = buffer[: problems * chunk.shape[1] * entries].view(problems, chunk.shape[1], entries)
        torch.baddbmm(half_norms, chunk, transposed, alpha=-1.0, out=score)
        best, index = score.min(dim=-1)
        indices[start : start + step] = index.T
        if with_distances:
            distances[start : start + step] = (2 * best + chunk.square().sum(-1)).clamp_(min=0.0).T
        if progress is not None:
            progress.update(chunk.shape[1] * problems)
    return indices, distances


def centroid_means(points: Tensor, indices: Tensor, entries: int, weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the weighted mean of the points at each centroid (P, n, d) and the weight there (P, n)."""
    rows, problems, width = points.shape
    sums = torch.zeros(problems * entries, width, device=indices.device)
    mass = torch.zeros(problems * entries, device=indices.device)
    first = torch.arange(problems, device=indices.device) * entries
    step = max(1, _VALUES_PER_CHUNK // (problems * width))
    for start in range(0, rows, step):
        chunk = points[start : start + step].to(sums)
        weight = torch.ones(len(chunk), device=sums.device) if weights is None else weights[start : start + step]
        slot = (indices[start : start + step] + first).flatten()
        sums.index_add_(0, slot, (chunk * weight.to(sums)[:, None, None]).flatten(0, 1))
        mass.index_add_(0, slot, weight.to(sums).repeat_interleave(problems))
    means = sums / mass.clamp(min=torch.finfo(sums.dtype).tiny).unsqueeze(-1)
    return means.view(problems, entries, width), mass.view(problems, entries)


def kmeans(
    points: Tensor,
    entries: int,
    weights: Tensor | None,
    generator: torch.Generator,
    iterations: int,
    device: torch.device,
    description: str | None = "k-means",
) -> tuple[Tensor, Tensor]:
    """Cluster P problems that share their rows and the rows' weights.

    Args:
        points: (V, P, d), the P problems side by side; a view of the table will do.
        entries: n, the centroids of each problem, at most V.
        weights: (V,) or None.
        generator: of the random choices.
        iterations: rounds at the most.
        device: where to compute.
        description: what the line of progress says; None: what it says already.

    Returns:
        The centroids (P, n, d) and the nearest one of each point (V, P).
    """
    rows, problems, width = points.shape
    group = max(1, _SAMPLE_VALUES // (min(rows, entries * _SAMPLES_PER_CENTROID) * width))
    total = (iterations + 1) * rows * problems
    shown = contextlib.nullcontext(Step("")) if description is None else step(description, total)
    with shown as progress:
        found = [
            _cluster(part, entries, weights, generator, iterations, device, progress)
            for part in points.split(group, dim=1)
        ]
    return torch.cat([centroids for centroids, _ in found]), torch.cat([indices for _, indices in found], dim=1)


def _cluster(
    points: Tensor,
    entries: int,
    weights: Tensor | None,
    generator: torch.Generator,
    iterations: int,
    device: torch.device,
    progress: Step,
) -> tuple[Tensor, Tensor]:
    """Cluster the problems of a group, which share a sample."""
    sample, sample_weights = sample_rows(points, entries, weights, generator)
    sample = sample.to(device=device, dtype=torch.float32)
    sample_weights = None if sample_weights is None else sample_weights.to(device)
    centroids = _start(sample, entries, sample_weights, generator)
    previous, spared = torch.inf, iterations * len(points)
    for _ in range(iterations):
        spared -= len(sample)
        indices, distances = assign(sample, centroids, progress)
        error = float(_weighted(distances, sample_weights).sum())
        if error >= previous * (1 - _TOLERANCE):
            break
        previous = error
        centroids, mass = centroid_means(sample, indices, entries, sample_weights)
        _refill(centroids, mass, sample, _weighted(distances, sample_weights))
    # What a sample and an early end have saved is done.
    progress.done += spared * points.shape[1]
    del sample, sample_weights
    indices, _ = assign(points, centroids, progress, with_distances=False)
    return centroids, indices


def _weighted(distances: Tensor, weights: Tensor | None) -> Tensor:
    return distances if weights is None else distances * weights.unsqueeze(-1)


def sample_rows(
    points: Tensor, entries: int, weights: Tensor | None, generator: torch.Generator
) -> tuple[Tensor, Tensor | None]:
    """Draw rows without replacement, likelier where they weigh more, where there are more than needed."""
    wanted = entries * _SAMPLES_PER_CENTROID
    if len(points) <= wanted:
        return points, weights
    if weights is None:
        return points[torch.randperm(len(points), generator=generator)[:wanted]], None
    # Half of the sample follows the weights and half is uniform; the weights undo the bias.
    chance = 0.5 * weights / weights.sum() + 0.5 / len(points)
    drawn = torch.multinomial(chance.double(), wanted, replacement=True, generator=generator)
    return points[drawn], weights[drawn] / (chance[drawn] * len(points))


def _start(sample: Tensor, entries: int, weights: Tensor | None, generator: torch.Generator) -> Tensor:
    """Take distinct rows, likelier where they weigh more, as first centroids (P, n, d)."""
    if weights is None:
        chosen = torch.randperm(len(sample), generator=generator)[:entries]
    else:
        # Rows that weigh nothing come last, and only where there are too few others.
        chance = weights.cpu().double().sqrt() + 1e-12
        chosen = torch.multinomial(chance, entries, replacement=False, generator=generator)
    return sample[chosen.to(sample.device)].transpose(0, 1).contiguous()


def _refill(centroids: Tensor, mass: Tensor, sample: Tensor, errors: Tensor) -> None:
    """Move centroids that lost all their points to the points that are served worst."""
    for problem in (mass == 0).any(dim=1).nonzero().flatten().tolist():
        empty = (mass[problem] == 0).nonzero().flatten()
        worst = errors[:, problem].topk(min(len(empty), len(sample))).indices
        centroids[problem, empty[: len(worst)]] = sample[worst, problem]
