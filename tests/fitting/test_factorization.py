"""Closed-form factors: the least error and the highest cosine there are, whatever the chunks, zeros and weights."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hf_compact_embeddings.fitting import factorization as module
from hf_compact_embeddings.fitting.factorization import (
    Factors,
    HiddenLayer,
    dequantise_rows,
    direction_axes,
    fit_svd,
    measure_fit,
    principal_axes,
    project_rows,
    quantise_rows,
    row_norms,
    with_row_norms,
)
from hf_compact_embeddings.modeling.errors import CompactConfigError


def random_table(rows: int = 300, width: int = 24, seed: int = 0, mean: float = 0.5) -> Tensor:
    """Return rows of very different lengths, along axes of different lengths, off the centre."""
    generator = torch.Generator().manual_seed(seed)
    axes = torch.randn(width, width, generator=generator) * torch.linspace(2, 0.2, width).unsqueeze(1)
    directions = torch.randn(rows, width, generator=generator) @ axes + mean
    return directions * (0.2 + 2 * torch.rand(rows, 1, generator=generator))


def random_weights(rows: int = 300, seed: int = 1) -> Tensor:
    return torch.rand(rows, generator=torch.Generator().manual_seed(seed)) ** 4 + 1e-3


def weighted_error(table: Tensor, decoded: Tensor, weights: Tensor) -> float:
    return float(((table - decoded).double().square().sum(1) * weights).sum())


def reference_svd(table: Tensor, rank: int, weights: Tensor, centred: bool) -> Tensor:
    """Return the best rows of that rank, by a full decomposition of the weighted table."""
    exact, roots = table.double(), weights.double().sqrt().unsqueeze(1)
    centre = (exact * roots.square()).sum(0) / roots.square().sum() if centred else torch.zeros(table.shape[1])
    left, values, right = torch.linalg.svd((exact - centre) * roots, full_matrices=False)
    values[rank:] = 0
    return left @ torch.diag(values) @ right / roots + centre


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("weighted", [True, False])
def test_svd_has_the_least_weighted_error(centred, weighted, monkeypatch):
    monkeypatch.setattr(module, "_ROWS_PER_CHUNK", 70)
    table = random_table()
    weights = random_weights() if weighted else torch.ones(300)
    factors = fit_svd(table, 5, weights if weighted else None, centred)
    assert factors.codes.shape == (300, 5) and factors.decoder.shape == (5, 24)
    assert (factors.bias is not None) == centred
    torch.testing.assert_close(factors.decode().double(), reference_svd(table, 5, weights, centred), atol=1e-4, rtol=0)


def test_weights_change_what_is_kept():
    table, weights = random_table(), random_weights()
    own, other = fit_svd(table, 5, weights).decode(), fit_svd(table, 5).decode()
    assert weighted_error(table, own, weights) < 0.95 * weighted_error(table, other, weights)


def test_axes_are_orthonormal_longest_first_and_the_same_for_a_mirrored_table():
    table = random_table()
    axes, centre = principal_axes(table, 6)
    torch.testing.assert_close(axes @ axes.T, torch.eye(6), atol=1e-5, rtol=0)
    spread = ((table - centre) @ axes.T).var(0)
    assert bool((spread.diff() < 0).all())
    torch.testing.assert_close(principal_axes(-table, 6)[0], axes, atol=1e-5, rtol=0)


def test_the_mean_of_a_far_off_table_does_not_drown_its_axes():
    table = random_table(mean=0.0) / 5
    axes, _ = principal_axes(table, 4)
    moved, _ = principal_axes(table + 300.0, 4)
    torch.testing.assert_close((axes @ moved.T).abs(), torch.eye(4), atol=1e-2, rtol=0)


@given(
    rows=st.integers(1, 40),
    width=st.integers(2, 12),
    data=st.data(),
    centred=st.booleans(),
)
def test_any_shape_has_a_fit(rows, width, data, centred):
    rank = data.draw(st.integers(1, width - 1))
    factors = fit_svd(random_table(rows, width), rank, None, centred)
    assert factors.codes.shape == (rows, rank) and factors.decoder.shape == (rank, width)
    if rank >= rows:
        torch.testing.assert_close(factors.decode(), random_table(rows, width), atol=1e-2, rtol=1e-3)


def skewed_table(rows: int = 2_000, width: int = 48) -> Tensor:
    """Return rows of which a few directions hold many, so that squared error and cosine want different axes."""
    generator = torch.Generator().manual_seed(3)
    groups = torch.randint(0, 12, (rows,), generator=generator)
    spread = torch.randn(12, width, width, generator=generator)[groups] * torch.linspace(2, 0.1, width)[:, None] ** 2
    return random_table(rows, width) / 8 + torch.einsum(
        "rw,rwd->rd", torch.randn(rows, width, generator=generator), spread
    )


def test_each_round_raises_the_mean_cosine_above_that_of_centred_svd():
    table = skewed_table()
    cosines = []
    for axes, centre in direction_axes(table, 8, rounds=2):
        factors = Factors(project_rows(table, axes, centre, row_norms(table)), axes, centre)
        cosines.append(measure_fit(table, factors).mean_cosine)
    assert measure_fit(table, fit_svd(table, 8)).mean_cosine < cosines[0] < cosines[1] <= cosines[2]


def test_a_round_that_does_harm_is_not_taken():
    # Nearly as many good axes as are asked for: reweighting swaps them to and fro.
    table = random_table(2_000, 48)
    norms, cosines = row_norms(table), []
    for axes, centre in direction_axes(table, 8, rounds=5):
        factors = Factors(project_rows(table, axes, centre, norms), axes, centre)
        cosines.append(measure_fit(table, factors).mean_cosine)
    assert cosines == sorted(cosines)


def test_direction_axes_heed_weights_and_not_lengths():
    table, weights = random_table(2_000, 48), random_weights(2_000)
    *_, (axes, centre) = direction_axes(table, 8, weights)
    factors = Factors(project_rows(table, axes, centre, row_norms(table)), axes, centre)
    *_, (plain, plain_centre) = direction_axes(table, 8)
    unweighted = Factors(project_rows(table, plain, plain_centre, row_norms(table)), plain, plain_centre)
    own, other = (measure_fit(table, one, weights=weights).mean_cosine for one in (factors, unweighted))
    assert own > other + 0.002
    *_, (scaled, _) = direction_axes(table * 1e-3, 8, weights * 7)
    torch.testing.assert_close(scaled, axes, atol=1e-3, rtol=0)


@pytest.mark.parametrize("centred", [True, False])
def test_zero_rows_decode_to_zero_and_have_no_say(centred):
    table = random_table()
    with_zeros = torch.cat([table[:100], torch.zeros(50, 24), table[100:]])
    factors = fit_svd(with_zeros, 5, centred=centred)
    decoded = factors.decode()
    assert not decoded[100:150].any()
    rest = torch.cat([decoded[:100], decoded[150:]])
    torch.testing.assert_close(rest, fit_svd(table, 5, centred=centred).decode(), atol=1e-4, rtol=0)
    *_, (axes, _) = direction_axes(with_zeros, 5)
    *_, (same, _) = direction_axes(table, 5)
    torch.testing.assert_close(axes, same, atol=1e-4, rtol=0)


def test_rows_equal_to_the_mean_are_not_taken_for_zero_rows():
    table = torch.ones(10, 4) * 3
    table[7] = 0
    decoded = fit_svd(table, 2).decode()
    torch.testing.assert_close(decoded[:7], table[:7], atol=1e-2, rtol=0)
    assert not decoded[7].any()


def test_a_table_of_zeros_decodes_to_zeros():
    assert not fit_svd(torch.zeros(6, 4), 2).decode().any()


def test_decoding_adds_bias_hidden_layer_and_scales():
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    hidden = HiddenLayer(normal(3, 6), normal(6), normal(6, 5))
    factors = Factors(normal(7, 3), normal(3, 5), normal(5), hidden, normal(7))
    factors.codes[4] = 0
    for row in range(7):
        code = factors.codes[row]
        expected = code @ factors.decoder + factors.bias + F.elu(code @ hidden.weight + hidden.bias) @ hidden.decoder
        expected = expected * factors.row_scales[row] if row != 4 else torch.zeros(5)
        torch.testing.assert_close(factors.decode(row, row + 1)[0], expected)
    plain = dataclasses.replace(factors, bias=None, hidden=None, row_scales=None)
    torch.testing.assert_close(plain.decode(2), plain.codes[2:] @ plain.decoder)


def test_row_scales_restore_the_norms():
    table = random_table()
    table[3] = 0
    factors = with_row_norms(table, fit_svd(table, 4))
    torch.testing.assert_close(factors.decode().norm(dim=1), table.norm(dim=1), rtol=1e-4, atol=1e-6)
    # Scales that are there already are replaced, not multiplied.
    torch.testing.assert_close(with_row_norms(table, factors).row_scales, factors.row_scales)


@given(exponent=st.floats(-6, 5), seed=st.integers(0, 100))
def test_int8_codes_are_within_half_a_step(exponent, seed):
    codes = torch.randn(20, 9, generator=torch.Generator().manual_seed(seed)) * 10**exponent
    codes[5] = 0
    quantised, scales = quantise_rows(codes)
    assert quantised.dtype == torch.int8 and scales.dtype == torch.float16
    restored = dequantise_rows(quantised, scales)
    # A scale below float16's normal range is itself rounded by up to half of its smallest step.
    step = scales.float().unsqueeze(1)
    allowed = 0.51 * step + 127 * step.clamp(max=0.5) * 2**-11 + 127 * 2**-25 * (step < 2**-14)
    assert bool(((restored - codes).abs() <= torch.where(step > 1, 0.6 * step, allowed)).all())
    assert torch.equal(restored.any(dim=1), codes.any(dim=1))


def test_codes_beyond_float16_scales_are_refused():
    for value in (1e9, float("nan"), float("inf")):
        with pytest.raises(CompactConfigError, match="codes"):
            quantise_rows(torch.full((2, 3), value))


def test_measures_are_what_they_are_called():
    table, weights = random_table(), random_weights()
    table[9] = 0
    factors = fit_svd(table, 5)
    decoded, present = factors.decode().double(), torch.arange(300) != 9
    exact, share = table.double(), (weights * present).double()
    share = share / share.sum()
    measures = measure_fit(table, factors, exponent=0.3, weights=weights)
    error = decoded - exact
    assert measures.mean_cosine == pytest.approx(float(share @ F.cosine_similarity(decoded, exact, dim=1)), abs=1e-6)
    assert measures.mean_power == pytest.approx(float(share @ error.abs().pow(0.3).mean(1)), rel=1e-5)
    assert measures.rmse == pytest.approx(float((share @ error.square().mean(1)).sqrt()), rel=1e-5)
    spread = (exact - exact.mean(0)).square().sum()
    assert measures.relative_mse == pytest.approx(float(error.square().sum() / spread), rel=1e-5)


@pytest.mark.parametrize("rank", [0, -1, 24, 25, 2.0, True])
def test_a_rank_out_of_range_is_refused(rank):
    with pytest.raises(CompactConfigError, match=r"`rank` is .* from 1 to 23"):
        fit_svd(random_table(), rank)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_table_that_is_not_finite_is_refused(value):
    table = random_table()
    table[41, 3] = value
    with pytest.raises(CompactConfigError, match="first in row 41"):
        fit_svd(table, 4)


@pytest.mark.parametrize("weights", [torch.ones(299), -torch.ones(300), torch.full((300,), float("nan"))])
def test_weights_that_make_no_sense_are_refused(weights):
    with pytest.raises(CompactConfigError, match="300 finite numbers"):
        fit_svd(random_table(), 4, weights)


def test_half_precision_tables_are_fitted_in_single():
    table = random_table()
    half = fit_svd(table.half(), 5)
    assert half.codes.dtype == half.decoder.dtype == torch.float32
    torch.testing.assert_close(half.decode(), fit_svd(table, 5).decode(), atol=2e-2, rtol=0)
