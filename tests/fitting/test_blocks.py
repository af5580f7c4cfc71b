from __future__ import annotations

import itertools

import pytest
import torch

from hf_compact_embeddings.fitting.blocks import block_distortion, fit_blocks, plan_blocks
from hf_compact_embeddings.fitting.spectrum import shannon_bound
from hf_compact_embeddings.modeling.errors import CompactConfigError


def test_block_distortion_is_the_shannon_bound_of_the_block():
    variances = torch.tensor([9.0, 4.0, 1.0, 0.2, 0.01])
    for code_bits in (1, 3, 8, 20):
        bound = shannon_bound(variances, code_bits / 5) * float(variances.sum())
        assert block_distortion(variances, code_bits) == pytest.approx(bound, rel=1e-6)


@pytest.mark.parametrize("decay", [0.5, 0.8, 1.0])
@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_widths_are_the_best_of_all(decay, blocks):
    variances = decay ** torch.arange(8.0)

    def cost(widths):
        parts = variances[: sum(widths)].split(list(widths))
        return sum(block_distortion(part, 3) for part in parts) + float(variances[sum(widths) :].sum())

    every = [w for w in itertools.product(range(1, 9), repeat=blocks) if sum(w) <= 8]
    assert cost(plan_blocks(variances, blocks, 3)) == pytest.approx(min(cost(w) for w in every))


def test_blocks_of_large_variance_are_narrower():
    widths = plan_blocks(0.95 ** torch.arange(64.0), 6)
    assert widths == sorted(widths)
    assert widths[0] < widths[-1]


def test_unequal_blocks_beat_equal_ones():
    generator = torch.Generator().manual_seed(0)
    deviations = 0.9 ** torch.arange(32.0)
    points = torch.randn(2000, 32, generator=generator) * deviations
    weights = torch.rand(2000, generator=generator) + 0.1
    errors = []
    for widths in (plan_blocks(deviations**2, 4, 6), [8] * 4):
        kept = points[:, : sum(widths)]
        codebooks, codes = fit_blocks(kept, widths, 6, weights, torch.Generator().manual_seed(1), 10)
        read = torch.cat([book[codes[:, i]] for i, book in enumerate(codebooks)], dim=1)
        left = (kept - read).square().sum(1) + points[:, sum(widths) :].square().sum(1)
        errors.append(float(weights @ left))
    assert errors[0] < 0.9 * errors[1]


def test_bad_requests_are_refused():
    with pytest.raises(CompactConfigError, match="1 to 4"):
        plan_blocks(torch.ones(4), 5)
    with pytest.raises(CompactConfigError, match="fall"):
        plan_blocks(torch.tensor([1.0, 2.0]), 1)
    with pytest.raises(CompactConfigError, match="too few"):
        fit_blocks(torch.zeros(10, 4), [2, 2], 8, None, torch.Generator())
    with pytest.raises(CompactConfigError, match="add up to 3"):
        fit_blocks(torch.zeros(300, 4), [1, 2], 8, None, torch.Generator())
