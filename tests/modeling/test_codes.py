"""Codes as bytes: nothing is lost, nothing is out of range, and scores are plain sums."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_compact_embeddings.modeling import codes
from hf_compact_embeddings.modeling.codes import (
    MAX_BITS,
    bits_for,
    pack_codes,
    packed_width,
    product_scores,
    unpack_codes,
)

widths = st.integers(1, MAX_BITS)
shapes = st.tuples(st.integers(1, 9), st.integers(1, 7))
seeds = st.integers(0, 2**31)


def random_codes(shape: tuple[int, ...], below: int, seed: int) -> torch.Tensor:
    return torch.randint(below, shape, generator=torch.Generator().manual_seed(seed))


@given(bits=widths, shape=shapes, seed=seeds)
def test_unpacking_gives_back_what_was_packed(bits: int, shape: tuple[int, int], seed: int) -> None:
    plain = random_codes(shape, 1 << bits, seed)
    packed = pack_codes(plain, bits)
    assert packed.dtype == torch.uint8
    assert packed.shape == (shape[0], packed_width(shape[1], bits))
    assert packed.is_contiguous()
    again = unpack_codes(packed, shape[1], bits)
    assert again.dtype == torch.int64
    assert torch.equal(again, plain)


@pytest.mark.parametrize("bits", [*range(1, MAX_BITS + 1), 32])
def test_the_extremes_of_every_width(bits: int) -> None:
    highest = (1 << bits) - 1
    plain = torch.tensor([[0] * 5, [highest] * 5, [0, highest, 0, highest, 0], [highest, 0, highest, 0, highest]])
    packed = pack_codes(plain, bits)
    assert torch.equal(unpack_codes(packed, 5, bits), plain)
    assert packed[0].eq(0).all()
    assert packed[1, : 5 * bits // 8].eq(255).all()


@given(bits=widths, shape=shapes, seed=seeds)
def test_any_bytes_unpack_to_codes_in_range(bits: int, shape: tuple[int, int], seed: int) -> None:
    rows, count = shape
    noise = random_codes((rows, packed_width(count, bits)), 256, seed).to(torch.uint8)
    plain = unpack_codes(noise, count, bits)
    assert plain.shape == shape
    assert int(plain.min()) >= 0 and int(plain.max()) < 1 << bits


@given(bits=widths, seed=seeds)
def test_rows_unpack_alone_and_in_any_arrangement(bits: int, seed: int) -> None:
    plain = random_codes((12, 5), 1 << bits, seed)
    packed = pack_codes(plain, bits)
    ids = torch.tensor([[3, 0], [11, 3]])
    assert torch.equal(unpack_codes(packed[ids], 5, bits), plain[ids])
    assert torch.equal(unpack_codes(packed[7], 5, bits), plain[7])
    assert unpack_codes(packed[:0], 5, bits).shape == (0, 5)


@pytest.mark.parametrize(
    ("count", "bits"), [(1, 1), (2, 1), (3, 2), (16, 4), (17, 5), (256, 8), (257, 9), (65_536, 16), (1 << 24, 24)]
)
def test_bits_for(count: int, bits: int) -> None:
    assert bits_for(count) == bits


@given(count=st.integers(1, 1 << MAX_BITS))
def test_bits_are_enough_and_not_too_many(count: int) -> None:
    assert 1 << bits_for(count) >= count
    assert bits_for(count) == 1 or 1 << (bits_for(count) - 1) < count


@given(
    entries=st.integers(1, 300),
    tables=st.integers(1, 5),
    queries=st.integers(0, 11),
    rows=st.integers(1, 40),
    seed=seeds,
)
def test_scores_are_plain_sums(entries: int, tables: int, queries: int, rows: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(tables, entries, queries, generator=generator)
    plain = random_codes((rows, tables), entries, seed)
    bits = bits_for(entries)
    wanted = sum((scores[i, plain[:, i]] for i in range(tables)), torch.zeros(rows, queries)).T
    got = product_scores(scores, pack_codes(plain, bits), bits)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)


def test_scores_do_not_depend_on_the_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = torch.randn(3, 20, 4)
    packed = pack_codes(random_codes((101, 3), 20, 0), 5)
    whole = product_scores(scores, packed, 5)
    for size in (1, 3, 30, 300):
        monkeypatch.setattr(codes, "_PER_CHUNK", size)
        assert torch.equal(product_scores(scores, packed, 5), whole)


def test_scores_carry_gradients_to_the_tables() -> None:
    scores = torch.randn(2, 4, 3, requires_grad=True)
    plain = torch.tensor([[0, 1], [0, 3], [2, 1]])
    product_scores(scores, pack_codes(plain, 2), 2).sum().backward()
    used = torch.zeros(2, 4)
    for row in plain:
        used[0, row[0]] += 1
        used[1, row[1]] += 1
    assert torch.equal(scores.grad, used.unsqueeze(-1).expand(-1, -1, 3))
