"""Hashes are the same everywhere, spread evenly, and alike under LSH where words are alike."""

from __future__ import annotations

import random
import time

import pytest
import torch
from torch import Tensor

from hf_compact_embeddings.modeling.errors import CompactConfigError
from hf_compact_embeddings.modeling.hashing import (
    MAX_WORD_CHARS,
    MIN_WORD_ID,
    SIGNATURE_BITS,
    HashSettings,
    Memo,
    WordHasher,
    expand_bits,
    foreign_ids,
    unpack_signatures,
)

LSH = HashSettings(hashing="lsh")
TYPOS = [
    ("government", "goverment"),
    ("definitely", "definately"),
    ("separate", "seperate"),
    ("beginning", "begining"),
    ("necessary", "neccessary"),
    ("interesting", "intresting"),
    ("restaurant", "restaurnat"),
    ("tomorrow", "tommorow"),
    ("knowledge", "knowlege"),
    ("language", "langauge"),
    ("müller", "muller"),
    ("straße", "strasse"),
]
MASK = (1 << 64) - 1


def random_words(count: int, seed: int = 0) -> list[str]:
    letters = random.Random(seed)
    return ["".join(letters.choices("abcdefghijklmnopqrstuvwxyz", k=letters.randint(3, 10))) for _ in range(count)]


def signature_bits(words: list[str], settings: HashSettings = LSH) -> Tensor:
    hasher = WordHasher(settings)
    return unpack_signatures(torch.tensor([hasher.signature(word) for word in words])).float()


def digest_bits(words: list[str]) -> Tensor:
    hasher = WordHasher(HashSettings())
    return expand_bits(torch.tensor([hasher.word_id(word) for word in words])).float()


@pytest.mark.parametrize(
    ("settings", "tag", "ids"),
    [
        (HashSettings(), 94, (426390251890540169, 426626309162886176, 426737486951628581)),
        (LSH, 453, (2043182518116548233, 2043418575388894240, 2043529753177636645)),
        (HashSettings(hash_seed=7), 1698, (7650679042912659644, 7647529362397848874, 7650826824161370815)),
    ],
    ids=["md", "lsh", "seed"],
)
def test_ids_are_the_published_ones(settings: HashSettings, tag: int, ids: tuple[int, ...]) -> None:
    hasher = WordHasher(settings)
    assert settings.tag == tag
    assert tuple(map(hasher.word_id, ("the", "müller", "語"))) == ids
    assert all(MIN_WORD_ID <= word_id < 1 << 63 and word_id >> 52 == tag for word_id in ids)


@pytest.mark.parametrize(
    ("word", "signature"),
    [
        ("the", (8560765566104603737, 9072727828255172647)),
        ("müller", (-2463932431386819322, 5242302739020570212)),
        ("語", (-6875869974272382874, 2311740471602740850)),
    ],
)
def test_signatures_are_the_published_ones(word: str, signature: tuple[int, int]) -> None:
    assert WordHasher(LSH).signature(word) == signature


def digest(word_id: int) -> int:
    """Mix in plain integers what `expand_bits` mixes in tensors."""

    def mixed(word: int) -> int:
        for _ in range(2):
            word = ((word >> 16) ^ word) * 0x045D9F3B % (1 << 32)
        return (word >> 16) ^ word

    low, high = word_id % (1 << 32), word_id >> 32
    steps = [0x9E3779B9 * lane % (1 << 32) for lane in range(1, 5)]
    words = [mixed((mixed((low + step) % (1 << 32)) ^ high) + step & MASK >> 32) for step in steps]
    return sum(word << 32 * lane for lane, word in enumerate(words))


def as_integer(bits: Tensor) -> int:
    return int("".join(map(str, reversed(bits.tolist()))), 2)


def test_expanded_bits_are_the_published_ones() -> None:
    bits = expand_bits(torch.tensor([426390251890540169]))
    assert f"{as_integer(bits[0]):032x}" == "c3c1cc2c008a09cdeaf28a17aae6a7dc"
    ids = [0, 1, MIN_WORD_ID, (1 << 63) - 1, *map(WordHasher(HashSettings()).word_id, random_words(50))]
    bits = expand_bits(torch.tensor(ids).reshape(2, -1))
    assert bits.shape == (2, len(ids) // 2, SIGNATURE_BITS) and bits.dtype == torch.uint8
    assert [as_integer(row) for row in bits.flatten(0, 1)] == [digest(word_id) for word_id in ids]


def test_every_bit_of_an_id_reaches_every_expanded_bit() -> None:
    ids = torch.tensor([WordHasher(HashSettings()).word_id(word) for word in random_words(2000)])
    for bit in range(63):
        changes = (expand_bits(ids) ^ expand_bits(ids ^ (1 << bit))).float().mean(0)
        assert (changes - 0.5).abs().max() < 5 * 0.5 / len(ids) ** 0.5, bit


def test_expanded_bits_survive_export() -> None:
    class Expansion(torch.nn.Module):
        def forward(self, ids: Tensor, signatures: Tensor) -> tuple[Tensor, Tensor]:
            return expand_bits(ids), unpack_signatures(signatures)

    example = torch.full((1, 3), MIN_WORD_ID), torch.zeros(1, 3, 2, dtype=torch.int64)
    length = torch.export.Dim("length")
    program = torch.export.export(Expansion(), example, dynamic_shapes=({1: length}, {1: length}))
    ids = torch.tensor([[WordHasher(LSH).word_id(word) for word in random_words(9)]])
    signatures = torch.tensor([[WordHasher(LSH).signature(word) for word in random_words(9)]])
    bits, unpacked = program.module()(ids, signatures)
    assert torch.equal(bits, expand_bits(ids)) and torch.equal(unpacked, unpack_signatures(signatures))


def test_unpacked_signatures_are_their_bits() -> None:
    signatures = [WordHasher(LSH).signature(word) for word in random_words(50)] + [(0, 0), (-1, 1)]
    bits = unpack_signatures(torch.tensor(signatures))
    assert bits.shape == (len(signatures), SIGNATURE_BITS)
    assert any(part < 0 for pair in signatures[:50] for part in pair)
    assert [as_integer(row) for row in bits] == [(high & MASK) << 64 | low & MASK for low, high in signatures]


def test_digest_bits_are_balanced_and_independent() -> None:
    bits = digest_bits(sorted(set(random_words(20_000))))
    deviation = 1 / len(bits) ** 0.5
    assert (2 * bits.mean(0) - 1).abs().max() < 5 * deviation
    correlations = torch.corrcoef(bits.T) - torch.eye(SIGNATURE_BITS)
    assert correlations.abs().max() < 6 * deviation
    neighbours = expand_bits(torch.arange(MIN_WORD_ID, MIN_WORD_ID + 2000)).float()
    distances = (neighbours[1:] - neighbours[:-1]).abs().sum(1)
    assert 62 < distances.mean() < 66 and distances.min() > 32


def test_signature_bits_are_balanced() -> None:
    # Over several seeds, since frequent letters lean every bit of one family to one side.
    words = random_words(400)
    means = torch.stack(
        [signature_bits(words, HashSettings(hashing="lsh", hash_seed=seed)).mean() for seed in range(10)]
    )
    assert (means.mean() - 0.5).abs() < 0.01


def test_a_typo_is_nearer_than_a_random_word_under_lsh_only() -> None:
    words, typos = ([pair[side] for pair in TYPOS] for side in (0, 1))
    others = random_words(500, seed=1)
    signed = (signature_bits(words) - signature_bits(typos)).abs().sum(1)
    random_distances = torch.cdist(signature_bits(typos), signature_bits(others), p=1)
    assert signed.max() < 50 and signed.mean() < 40
    assert (signed[:, None] < random_distances).float().mean() > 0.98
    assert 61 < random_distances.mean() < 67
    digests = (digest_bits(words) - digest_bits(typos)).abs().sum(1)
    assert digests.min() > 40 and 58 < digests.mean() < 70


def test_a_seed_draws_other_signatures() -> None:
    words = random_words(100)
    other = signature_bits(words, HashSettings(hashing="lsh", hash_seed=1))
    assert 56 < (signature_bits(words) - other).abs().sum(1).mean() < 72


def test_words_that_share_all_their_pieces_still_differ() -> None:
    hasher = WordHasher(LSH)
    assert hasher.signature("1000000") != hasher.signature("10000000")


def test_ngram_sizes_choose_the_pieces() -> None:
    def pieces(*sizes: int) -> set[str]:
        return WordHasher(HashSettings(hashing="lsh", ngram_sizes=sizes))._ngrams("abc")

    assert pieces(1) == {"a", "b", "c"}
    assert pieces(2) == {"\x02a", "ab", "bc", "c\x03"}
    assert pieces(4, 9) == {"\x02abc", "abc\x03"}


def test_only_the_first_characters_of_a_word_count() -> None:
    start = "".join(random_words(40))[:MAX_WORD_CHARS]
    for settings in (HashSettings(), LSH):
        hasher = WordHasher(settings)
        assert hasher.word_id(start + "x") == hasher.word_id(start) != hasher.word_id(start[:-1])
        assert hasher.signature(start + "x") == hasher.signature(start) != hasher.signature(start[:-1])
    begun = time.perf_counter()
    WordHasher(LSH).signature("ab" * 500_000)
    assert time.perf_counter() - begun < 1


def test_settings_without_influence_do_not_count() -> None:
    assert HashSettings(ngram_sizes=(5,)) == HashSettings()
    assert HashSettings(hashing="lsh", ngram_sizes=[4, 2, 3, 3]) == LSH
    assert HashSettings(hashing="lsh", pieces="ab", ngram_sizes=(5,)) == HashSettings(hashing="lsh", pieces="ab")


@pytest.mark.parametrize(
    "settings",
    [
        HashSettings(),
        HashSettings(hash_seed=3),
        LSH,
        HashSettings(hashing="lsh", ngram_sizes=(3,)),
        HashSettings(hashing="lsh", pieces="0f"),
    ],
)
def test_settings_survive_json_and_have_a_tag_of_their_own(settings: HashSettings) -> None:
    values = settings.to_dict()
    assert HashSettings.from_dict(values | {"model_max_length": 512}) == settings
    assert None not in values.values()
    assert 0 < settings.tag < 2048
    assert settings.tag not in {HashSettings(hash_seed=9).tag, HashSettings(hashing="lsh", hash_seed=9).tag}


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("hashing", {"hashing": "sha"}),
        ("hash_version", {"hash_version": 2}),
        ("hash_seed", {"hash_seed": -1}),
        ("hash_seed", {"hash_seed": True}),
        ("ngram_sizes", {"hashing": "lsh", "ngram_sizes": ()}),
        ("ngram_sizes", {"hashing": "lsh", "ngram_sizes": (0,)}),
        ("ngram_sizes", {"hashing": "lsh", "ngram_sizes": 3}),
        ("pieces", {"hashing": "md", "pieces": "0f"}),
    ],
)
def test_settings_refuse(field: str, values: dict[str, object]) -> None:
    with pytest.raises(CompactConfigError, match=f"`{field}` is "):
        HashSettings(**values)


def test_foreign_ids_are_told_apart() -> None:
    ours, theirs = WordHasher(HashSettings()), WordHasher(HashSettings(hash_seed=1))
    ids = torch.tensor([0, 4, 5, 30_521, -100, ours.word_id("a"), theirs.word_id("a")])
    expected = [False, False, True, True, True, False, True]
    assert foreign_ids(ids, ours.settings, special_ids=5).tolist() == expected


def test_a_memo_forgets_before_it_grows_too_large() -> None:
    asked: list[str] = []
    memo = Memo(lambda key: asked.append(key) or len(key), limit=2)
    assert [memo[key] for key in ("a", "a", "bb", "ccc", "a")] == [1, 1, 2, 3, 1]
    assert asked == ["a", "bb", "ccc", "a"] and len(memo) == 2
