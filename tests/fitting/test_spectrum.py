from __future__ import annotations

import math

import pytest
import torch

from hf_compact_embeddings.fitting.spectrum import covariance, gap_db, shannon_bound


def test_covariance_is_that_of_rows_repeated_by_their_weights():
    rows = torch.randn(50, 6, generator=torch.Generator().manual_seed(0)) + 3.0
    weights = torch.arange(50) % 4
    mean, moment = covariance(rows, weights.float())
    repeated = rows.repeat_interleave(weights, dim=0).double()
    torch.testing.assert_close(mean, repeated.mean(0))
    torch.testing.assert_close(moment, torch.cov(repeated.T, correction=0), atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("rate", [0.0, 0.5, 2.0])
def test_bound_of_a_flat_spectrum_is_six_db_a_bit(rate):
    assert shannon_bound(torch.full((7,), 3.0), rate) == pytest.approx(4.0**-rate)


def test_bound_fills_only_axes_above_the_level():
    # 2 bits over two axes: all of them go to the first, whose variance falls to 1 = that of the second.
    assert shannon_bound(torch.tensor([16.0, 1.0]), 1.0) == pytest.approx(2 / 17)


def test_bound_of_a_constant_table_is_zero():
    assert shannon_bound(torch.zeros(4), 1.0) == 0.0


def test_gap_in_decibels():
    assert gap_db(0.2, 0.1) == pytest.approx(10 * math.log10(2))
    assert gap_db(0.0, 0.0) == 0.0
    assert gap_db(0.1, 0.0) == math.inf
