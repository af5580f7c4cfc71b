from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from hf_compact_embeddings.fitting import trellis
from hf_compact_embeddings.fitting.trellis_costs import ring_of, whole_points
from hf_compact_embeddings.modeling.errors import CompactConfigError

needs_numba = pytest.mark.skipif(importlib.util.find_spec("numba") is None, reason="numba is not installed")

# Rings short enough to try every state, rings that are forced to close at several places, and at one.
ROWS_OF_BITS = [
    [1] * 8,
    [2, 1, 1] * 4,
    [3] * 8,
    [2, 2, 1, 1, 1, 1] * 6,
    [4, 2, 1, 1] * 12,
    [6, 5, 1] * 6,
    [1] * 168,
    [3, 2, 2, 1] * 24,
]


def gaussian_rows(rows: int, axes: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, axes, generator=torch.Generator().manual_seed(seed))


def gap_db(bits: int, axes: int, window_bits: int, rows: int) -> float:
    points = gaussian_rows(rows, axes)
    gains = trellis.spread([bits] * axes).float()
    codes = trellis.encode(points, [bits] * axes, gains, window_bits)
    read = trellis.decode(codes, [bits] * axes, window_bits) * gains
    error = (read - points).square().mean() / points.square().mean()
    return float(10 * torch.log10(error * 4**bits))


@needs_numba
@pytest.mark.parametrize("bits", ROWS_OF_BITS, ids=str)
def test_compiled_and_plain_search_agree_bit_for_bit(bits):
    window_bits = 8
    points = gaussian_rows(9, len(bits))
    gains = torch.linspace(1.5, 0.5, len(bits))
    compiled = trellis.encode(points, bits, gains, window_bits, compiled=True)
    plain = trellis.encode(points, bits, gains, window_bits, compiled=False)
    assert torch.equal(compiled, plain)


@needs_numba
def test_the_compiled_search_leaves_the_number_of_threads_alone():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        trellis.encode(gaussian_rows(9, 8), [1] * 8, torch.ones(8), 8, compiled=True)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


@needs_numba
@pytest.mark.parametrize("window_bits", [6, 10, 12, 16])
def test_both_searches_agree_at_all_windows_and_far_from_the_values(window_bits):
    bits = [6, 4, 3, 2, 1, 1, 1, 2, 2, 2] * 2
    # Points beyond all values are cut off, and gains of all sizes take every shift.
    points = gaussian_rows(2, len(bits)) ** 3 * torch.logspace(-2, 2, len(bits))
    gains = torch.logspace(-2, 2, len(bits)).flip(0)
    compiled = trellis.encode(points, bits, gains, window_bits, compiled=True)
    plain = trellis.encode(points, bits, gains, window_bits, compiled=False)
    assert torch.equal(compiled, plain)


@needs_numba
@pytest.mark.parametrize("bits", [[1] * 40, [2, 1] * 32, [1] * 200], ids=len)
def test_codes_do_not_depend_on_threads(bits):
    points, gains = gaussian_rows(31, len(bits)), torch.ones(len(bits))
    threads, codes = torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            codes.append(trellis.encode(points, bits, gains, 8, compiled=True))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*codes)


@needs_numba
@pytest.mark.parametrize("bits", [[2, 1, 1] * 4, [3] * 16, [2, 2, 1, 1, 1, 1] * 6], ids=str)
def test_both_searches_take_the_first_of_equally_good_paths(bits):
    # Without gains every path costs the same.
    codes = [
        trellis.encode(gaussian_rows(3, len(bits)), bits, torch.zeros(len(bits)), 8, compiled=compiled)
        for compiled in (True, False)
    ]
    assert torch.equal(*codes)


@pytest.mark.parametrize(
    "failure",
    [
        "raise ImportError('Numba needs NumPy 2.0 or less. Got NumPy 2.4.')",
        "raise OSError('Could not find/load shared object file: libllvmlite.so')",
        "from numpy import nothing_that_is_there",
    ],
)
def test_a_numba_that_cannot_be_imported_is_done_without(
    failure: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bits, points = [2, 1, 1] * 4, gaussian_rows(9, 12)
    plain = trellis.encode(points, bits, torch.ones(12), 8, compiled=False)
    (tmp_path / "numba.py").write_text(failure)
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("numba", trellis.__name__ + "_kernel"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    logged: list[str] = []
    monkeypatch.setattr(trellis.logger, "warning", logged.append)
    trellis._numba_works.cache_clear()
    try:
        for _ in range(2):
            assert torch.equal(trellis.encode(points, bits, torch.ones(12), 8), plain)
        assert len(logged) == 1 and "plain torch, far slower" in logged[0]
        assert failure.split("'")[1] in logged[0] if "'" in failure else "nothing_that_is_there" in logged[0]
        with pytest.raises((ImportError, OSError)):
            trellis.encode(points, bits, torch.ones(12), 8, compiled=True)
    finally:
        trellis._numba_works.cache_clear()


@pytest.mark.parametrize("bits", ROWS_OF_BITS, ids=str)
def test_windows_close_to_a_ring(bits):
    window_bits = 8
    codes = trellis.encode(gaussian_rows(5, len(bits)), bits, torch.ones(len(bits)), window_bits, compiled=False)
    assert codes.shape == (5, sum(bits) // 8)
    windows = trellis.windows_of(codes, bits, window_bits).long()
    mask = (1 << window_bits) - 1
    for axis, count in enumerate(bits):
        shifted = (windows[:, axis - 1] << count) & mask
        assert torch.equal(windows[:, axis] >> count << count, shifted)


def test_short_rings_are_searched_exactly():
    bits = [2, 1, 1, 1, 1, 1, 1]
    point = gaussian_rows(4, len(bits))
    every = torch.arange(256, dtype=torch.uint8)[:, None]
    best = (trellis.decode(every, bits, 8) - point[:, None]).square().sum(-1).argmin(1)
    assert trellis.encode(point, bits, torch.ones(len(bits)), 8)[:, 0].tolist() == best.tolist()


def least_errors(points: torch.Tensor, bits: list[int], gains: torch.Tensor, window_bits: int) -> torch.Tensor:
    """Return the least error of any ring for each row (V,), by walking from every state in float64."""
    values = trellis.reproduction_values(window_bits).double() * gains.double()[:, None]
    states = values.shape[1]
    found = []
    for point in points.double():
        # Row s are the paths that began in state s.
        cost = torch.full((states, states), torch.inf, dtype=torch.float64).fill_diagonal_(0.0)
        for axis, count in enumerate(bits):
            best = cost.view(states, 1 << count, -1).amin(1)
            error = (point[axis] - values[axis]).square().view(1, -1, 1 << count)
            cost = (best[:, :, None] + error).view(states, states)
        found.append(cost.diagonal().min())
    return torch.stack(found)


@pytest.mark.parametrize(
    "bits, most",
    [
        ([1] * 24, 0.002),
        ([2, 1, 1] * 12, 0.002),
        ([2, 2, 1, 1, 1, 1] * 9, 0.03),
        ([1] * 168, 0.01),
        ([4, 3, 3, 2, 2, 1, 1] * 11, 0.02),
    ],
    ids=lambda value: str(sum(value)) if isinstance(value, list) else "",
)
@pytest.mark.parametrize("tails", [0.0, 0.5])
def test_errors_are_close_to_the_least_of_all_rings(bits, most, tails):
    lengths = torch.tensor([2.0**count for count in bits])
    points = lengths * gaussian_rows(10, len(bits)) * (tails * gaussian_rows(10, len(bits), seed=1)).exp()
    gains = lengths * trellis.spread(bits).float()
    read = trellis.decode(trellis.encode(points, bits, gains, 7), bits, 7) * gains
    error, least = (read - points).double().square().sum(), least_errors(points, bits, gains, 7).sum()
    lost = float(10 * torch.log10(error / least))
    # Points far beyond all values are cut off.
    assert -1e-6 < lost < most + 0.03 * (tails > 0)


@pytest.mark.parametrize("window_bits", [8, 12, 16])
@pytest.mark.parametrize("bits", [[1] * 16, [2, 1] * 8, [6, 5, 4, 3, 2, 1, 1, 2]], ids=str)
@pytest.mark.parametrize("spread", [0, 1, 6])
def test_what_the_search_counts_with_fits_16_bits(bits, spread, window_bits):
    gains = torch.logspace(-spread, spread, len(bits))
    ring, units, most = ring_of(bits, gains, window_bits)
    # The compiled step over an axis of one bit has no shift.
    assert (ring.shifts[ring.bits == 1] == 0).all()
    far = whole_points(torch.tensor([[1e30], [-1e30]]).expand(2, len(bits)), units, most).long()
    for axis, shift in enumerate(ring.shifts.tolist()):
        values = ring.axis_values(axis).long()
        differences = far[:, axis, None] - values
        assert differences.abs().max() < 1 << 15
        # Else points beyond the values would use up the range of costs before these are renewed.
        nearest = (differences.abs().amin(1) << shift).square() >> 16
        assert 16 * int(nearest.max()) < 28_000
        error = (values.double() * units[axis].double() - trellis.reproduction_values(window_bits) * gains[axis]).abs()
        assert error.max() <= max(2.0 * float(units[axis]), 1e-3 * float(gains[axis]))


def test_rows_decode_alone():
    bits = [2, 1, 1] * 8
    codes = trellis.encode(gaussian_rows(12, len(bits)), bits, torch.ones(len(bits)), 8)
    whole = trellis.decode(codes, bits, 8)
    assert torch.equal(trellis.decode(codes[7], bits, 8), whole[7])
    assert torch.equal(trellis.decode(codes[[3, 3, 1]].view(3, 1, -1), bits, 8)[:, 0], whole[[3, 3, 1]])


@pytest.mark.parametrize("bits, window_bits, most", [(1, 8, 0.75), (2, 8, 1.0), (1, 10, 0.5), (2, 10, 0.75)])
def test_gaussian_rows_come_close_to_the_bound(bits, window_bits, most):
    # A scalar quantiser is 1.6 dB off at 1 bit and 2.6 dB at 2.
    assert 0.0 < gap_db(bits, 192, window_bits, rows=48) < most


def test_values_of_every_branch_point_are_evenly_spaced_quantiles():
    values = trellis.reproduction_values(8).double()
    ranks = (torch.special.ndtr(values) * 256 - 0.5).round().long()
    assert sorted(ranks.tolist()) == list(range(256))
    for bits in (1, 2, 3, 4):
        siblings = ranks.view(-1, 1 << bits).sort(dim=1).values
        assert (siblings.diff(dim=1) == 256 >> bits).all()


def test_expected_distortion_falls_by_about_six_db_a_bit():
    left = trellis.expected_distortion()
    assert left[0] == 1.0
    assert ((left[1:] / left[:-1] > 0.22) & (left[1:] / left[:-1] < 0.30)).all()


@pytest.mark.parametrize(
    "bits, window_bits, words",
    [
        ([1] * 9, 8, "whole bytes"),
        ([1] * 8, 10, "one window of 10 bits"),
        ([0] + [1] * 8, 8, "1 to 6"),
        ([7] + [1] * 9, 8, "1 to 6"),
        ([1] * 24, 17, "to 16"),
    ],
)
def test_bits_that_cannot_be_coded_are_refused(bits, window_bits, words):
    with pytest.raises(CompactConfigError, match=words):
        trellis.encode(torch.zeros(1, len(bits)), bits, torch.ones(len(bits)), window_bits)


def test_points_of_another_width_are_refused():
    with pytest.raises(CompactConfigError, match="do not fit to 8 axes"):
        trellis.encode(torch.zeros(1, 7), [1] * 8, torch.ones(8), 8)


def test_no_rows_give_no_codes():
    assert trellis.encode(torch.zeros(0, 8), [1] * 8, torch.ones(8), 8).shape == (0, 1)


def test_the_time_that_a_search_will_take_grows_with_the_rows() -> None:
    one, many = (trellis.seconds_to_encode(rows, [2] * 32, 12) for rows in (1_000, 1_000_000))
    assert 0 < one < many, "a thousand times the rows, whatever else the machine does"
