from __future__ import annotations

import math

import pytest
import torch

from hf_compact_embeddings.fitting.allocation import code_lengths
from hf_compact_embeddings.modeling.huffman import coded_bytes, is_complete, pack_symbols, unpack_symbols

LENGTHS = {
    "two": (1, 1),
    "three": (2, 1, 2),
    "unsorted": (3, 3, 2, 2, 3, 3),
    "equal": (9,) * 512,
    "long": (*range(1, 40), 39),
}


def drawn(lengths: tuple[int, ...], count: int) -> torch.Tensor:
    chances = torch.tensor([2.0**-length for length in lengths])
    return torch.multinomial(chances, 1000, replacement=True, generator=torch.Generator().manual_seed(0))[:count]


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS.keys())
@pytest.mark.parametrize("count", [0, 1, 7, 1000])
def test_names_are_read_as_they_were_written(lengths: tuple[int, ...], count: int) -> None:
    values = drawn(lengths, count)
    packed = pack_symbols(values, lengths)
    counts = torch.bincount(values, minlength=len(lengths)).tolist()
    assert packed.dtype == torch.uint8 and len(packed) == coded_bytes(counts, lengths)
    assert torch.equal(unpack_symbols(packed, count, lengths), values)


def test_the_code_is_canonical() -> None:
    # 1 is 0, 3 is 10, 0 is 110, 2 is 111; the first bit of a byte is its lowest.
    packed = pack_symbols(torch.tensor([1, 3, 0, 2]), (3, 1, 3, 2))
    assert packed.tolist() == [0b11011010, 0b1]


def test_bits_that_no_names_were_written_to_are_read_as_some_values() -> None:
    packed = torch.randint(256, (20,), dtype=torch.uint8)
    for count in (10, 500):
        found = unpack_symbols(packed, count, (1, 2, 3, 3))
        assert len(found) == count and 0 <= int(found.min()) <= int(found.max()) < 4


@pytest.mark.parametrize("lengths", [(), (1,), (1, 1, 1), (2, 2, 2), (0, 1), (-1, 1), (60, 60)], ids=str)
def test_lengths_that_make_no_code(lengths: tuple[int, ...]) -> None:
    assert not is_complete(lengths)


@pytest.mark.parametrize("counts", [[5, 1], [0, 0, 7], [1, 2, 4, 8, 16], [30000, *[7] * 300], [1] * 5], ids=len)
def test_names_take_no_more_than_a_bit_above_their_entropy(counts: list[int]) -> None:
    lengths, total = code_lengths(counts), sum(counts)
    assert is_complete(lengths)
    entropy = sum(count * math.log2(total / count) for count in counts if count)
    assert entropy <= sum(count * length for count, length in zip(counts, lengths, strict=True)) <= entropy + total


def test_one_kind_needs_no_name() -> None:
    assert code_lengths([7]) == ()


def test_frequent_kinds_have_short_names() -> None:
    assert code_lengths([1, 8, 2, 4]) == (3, 1, 3, 2)
