"""The tokenizer without a vocabulary behaves as a fast tokenizer does, and is the same in every process."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BatchEncoding, PreTrainedTokenizerFast

from hf_compact_embeddings.modeling.errors import CompactConfigError
from hf_compact_embeddings.modeling.hashing import MIN_WORD_ID, HashSettings, WordHasher, unpack_signatures
from hf_compact_embeddings.modeling.tokenization_hash import CompactHashTokenizer

HASHES = pytest.mark.parametrize("hashing", ["md", "lsh"])
SPECIAL_IDS = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4}
TEXTS = ["one two three four five six seven", "a b", "", "alpha beta gamma delta"]
PAIRS = ["x y z", "p q r s t u v w", "k", ""]


@pytest.fixture(scope="module")
def fast() -> PreTrainedTokenizerFast:
    """A Rust tokenizer that splits plain words as ours does; all words are unknown to it."""
    backend = Tokenizer(models.WordLevel(SPECIAL_IDS, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    names = {f"{token.strip('[]').lower()}_token": token for token in SPECIAL_IDS}
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=64, **names)


@pytest.fixture
def ours(fast: PreTrainedTokenizerFast) -> CompactHashTokenizer:
    return CompactHashTokenizer(hashing="lsh", model_max_length=fast.model_max_length)


def assert_same_layout(ours: BatchEncoding, fast: BatchEncoding) -> None:
    """Demand that everything but the ids of words agrees."""
    assert set(ours) - {"signatures"} == set(fast)
    for name, values in fast.items():
        mine = ours[name]
        if name == "input_ids":
            mine = [[1 if token >= MIN_WORD_ID else token for token in row] for row in mine]
        assert mine == values, name
    for row in range(len(fast.encodings)):
        for method in ("word_ids", "sequence_ids"):
            assert getattr(ours, method)(row) == getattr(fast, method)(row), method
        assert len(ours["signatures"][row]) == len(ours["input_ids"][row])
        for token, pair in zip(ours["input_ids"][row], ours["signatures"][row], strict=True):
            assert (pair == (0, 0)) == (token < MIN_WORD_ID)


EVERYTHING = dict(
    return_offsets_mapping=True,
    return_special_tokens_mask=True,
    return_token_type_ids=True,
    return_length=True,
)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"add_special_tokens": False},
        {"padding": True},
        {"padding": "max_length", "max_length": 30},
        {"padding": True, "pad_to_multiple_of": 8},
        {"truncation": True, "max_length": 5},
        {"truncation": True, "max_length": 4, "padding": "max_length"},
        {"truncation": True, "max_length": 3, "add_special_tokens": False},
        {"truncation": "only_first", "max_length": 5, "stride": 1, "return_overflowing_tokens": True},
        {"truncation": True, "max_length": 6, "stride": 3, "return_overflowing_tokens": True, "padding": True},
        {"truncation": True, "max_length": 2},
    ],
    ids=str,
)
def test_single_texts_are_laid_out_as_by_a_fast_tokenizer(
    options: dict, side: str, ours: CompactHashTokenizer, fast: PreTrainedTokenizerFast
) -> None:
    for tokenizer in (ours, fast):
        tokenizer.padding_side = tokenizer.truncation_side = side
    assert_same_layout(ours(TEXTS, **EVERYTHING, **options), fast(TEXTS, **EVERYTHING, **options))


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"add_special_tokens": False, "padding": True},
        {"truncation": True, "max_length": 8, "padding": True},
        {"truncation": "longest_first", "max_length": 11},
        {"truncation": "longest_first", "max_length": 5},
        {"truncation": "longest_first", "max_length": 4},
        {"truncation": "only_second", "max_length": 12},
        {"truncation": "only_second", "max_length": 13, "stride": 1, "return_overflowing_tokens": True},
        {"truncation": "longest_first", "max_length": 9, "stride": 1, "return_overflowing_tokens": True},
    ],
    ids=str,
)
def test_pairs_are_laid_out_as_by_a_fast_tokenizer(
    options: dict, side: str, ours: CompactHashTokenizer, fast: PreTrainedTokenizerFast
) -> None:
    for tokenizer in (ours, fast):
        tokenizer.padding_side = tokenizer.truncation_side = side
    theirs = fast(TEXTS, PAIRS, **EVERYTHING, **options)
    mine = ours(TEXTS, PAIRS, **EVERYTHING, **options)
    if options.get("return_overflowing_tokens") and options["truncation"] == "longest_first":
        # Both sides overflow: the same rows, which the two tokenizers put into different orders.
        assert sorted(map(str, mine["offset_mapping"])) == sorted(map(str, theirs["offset_mapping"]))
        assert mine["overflow_to_sample_mapping"] == theirs["overflow_to_sample_mapping"]
        return
    assert_same_layout(mine, theirs)
    as_tuples = ours(list(zip(TEXTS, PAIRS, strict=True)), **EVERYTHING, **options)
    assert as_tuples.data == mine.data


def test_split_texts_are_laid_out_as_by_a_fast_tokenizer(
    ours: CompactHashTokenizer, fast: PreTrainedTokenizerFast
) -> None:
    split = [["one", "two , three", "", "four."], ["five"]]
    options = EVERYTHING | {"is_split_into_words": True}
    assert_same_layout(ours(split, **options), fast(split, **options))
    assert_same_layout(ours(split, split[::-1], **options), fast(split, split[::-1], **options))
    assert ours(split[0], is_split_into_words=True)["input_ids"] == ours(split, **options)["input_ids"][0]


def test_one_text_is_the_first_row_of_a_batch(ours: CompactHashTokenizer) -> None:
    batch = ours([TEXTS[0]], [PAIRS[0]], **EVERYTHING)
    single = ours(TEXTS[0], PAIRS[0], **EVERYTHING)
    assert {name: value[0] for name, value in batch.items()} == {**single, "length": single["length"][0]}
    assert ours.encode(TEXTS[0], PAIRS[0]) == single["input_ids"]
    assert ours(TEXTS[0], "")["input_ids"] == [*ours(TEXTS[0])["input_ids"], 3]


def test_places_of_tokens_can_be_asked_for(ours: CompactHashTokenizer, fast: PreTrainedTokenizerFast) -> None:
    text, pair = "Ab, cd!", "ef  gh"
    mine, theirs = (tokenizer(text, pair, return_offsets_mapping=True) for tokenizer in (ours, fast))
    for sequence, given_text in enumerate((text, pair)):
        for char in range(len(given_text)):
            assert mine.char_to_token(0, char, sequence) == theirs.char_to_token(0, char, sequence)
            assert mine.char_to_word(0, char, sequence) == theirs.char_to_word(0, char, sequence)
        for word in range(2):
            assert mine.word_to_tokens(0, word, sequence) == theirs.word_to_tokens(0, word, sequence)
            assert mine.word_to_chars(0, word, sequence) == theirs.word_to_chars(0, word, sequence)
    for token in range(1, len(mine["input_ids"]) - 1):
        assert mine.token_to_chars(0, token) == theirs.token_to_chars(0, token)
        assert mine.token_to_word(0, token) == theirs.token_to_word(0, token)
    assert mine.token_to_sequence(0, 2) == 0 and mine.token_to_sequence(0, 7) == 1
    assert mine.is_fast and mine.n_sequences == 2
    assert mine.tokens() == ["[CLS]", "ab", ",", "cd", "!", "[SEP]", "ef", "gh", "[SEP]"]


@HASHES
@given(text=st.text(st.characters(exclude_categories=()), max_size=60))
def test_any_text_is_encoded(hashing: str, text: str) -> None:
    tokenizer = CompactHashTokenizer(hashing=hashing)
    encoding = tokenizer(text, return_offsets_mapping=True, add_special_tokens=False)
    assert all(MIN_WORD_ID <= token < 1 << 63 for token in encoding["input_ids"])
    for token, (start, end) in zip(encoding["input_ids"], encoding["offset_mapping"], strict=True):
        assert tokenizer(text[start:end], add_special_tokens=False)["input_ids"] == [token]
    assert tokenizer.convert_tokens_to_ids(encoding.tokens()) == encoding["input_ids"]
    assert tokenizer.decode(encoding["input_ids"]).encode() == " ".join(encoding.tokens()).encode()
    assert tokenizer.convert_ids_to_tokens(encoding["input_ids"]) == encoding.tokens()


@HASHES
def test_a_word_of_a_megabyte_takes_no_time(hashing: str) -> None:
    tokenizer = CompactHashTokenizer(hashing=hashing)
    for text in ("ab" * 500_000, "!" * 1_000_000, "e\u0301" * 500_000, "\ud800" * 1_000_000):
        begun = time.process_time()
        encoding = tokenizer(text, return_offsets_mapping=True)
        assert time.process_time() - begun < 1
        assert len(encoding["input_ids"]) == 3 and encoding["offset_mapping"][1] == (0, 1_000_000)
    assert sum(map(len, [*tokenizer.cache["ids"], *tokenizer.cache["spellings"].values()])) < 2_000


@HASHES
def test_texts_without_words_have_special_tokens_only(hashing: str) -> None:
    tokenizer = CompactHashTokenizer(hashing=hashing)
    texts = ["", " ", "\n\t", "\x00\x07", "\u200b\ufeff"]
    assert tokenizer(texts)["input_ids"] == [[2, 3]] * 5
    tensors = tokenizer(texts, return_tensors="pt", add_special_tokens=False, padding=True)
    assert tensors["input_ids"].shape == (5, 0)
    if hashing == "lsh":
        assert tensors["signatures"].shape == (5, 0, 2)
    assert tokenizer([])["input_ids"] == []


def test_special_tokens_have_fixed_ids() -> None:
    tokenizer = CompactHashTokenizer()
    assert tokenizer.get_vocab() == SPECIAL_IDS
    assert len(tokenizer) == tokenizer.vocab_size == 5
    assert sorted(tokenizer.all_special_ids) == list(range(5))
    text = "the [MASK] is [PAD]ded"
    encoding = tokenizer(text, return_special_tokens_mask=True, return_offsets_mapping=True)
    assert encoding.tokens() == ["[CLS]", "the", "[MASK]", "is", "[PAD]", "ded", "[SEP]"]
    assert [text[start:end] for start, end in encoding["offset_mapping"][2:5]] == ["[MASK]", "is", "[PAD]"]
    assert encoding["special_tokens_mask"] == [1, 0, 0, 0, 0, 0, 1]
    assert tokenizer.get_special_tokens_mask(encoding["input_ids"], already_has_special_tokens=True) == [
        *(1, 0, 1, 0, 1, 0, 1)
    ]
    split = tokenizer(text, split_special_tokens=True)
    assert split.tokens()[2:5] == ["[", "mask", "]"]


def test_tokens_can_be_added_and_named(tmp_path: Path) -> None:
    tokenizer = CompactHashTokenizer(cls_token="<s>", pad_token="<pad>")
    assert (tokenizer.cls_token_id, tokenizer.pad_token_id) == (2, 0)
    assert tokenizer.add_tokens(["@ent", "@entity"]) == 2
    tokenizer.save_pretrained(tmp_path)
    for loaded in (tokenizer, CompactHashTokenizer.from_pretrained(tmp_path)):
        assert len(loaded) == 7
        assert loaded("a@entity @entb")["input_ids"][1:5] == [
            loaded("a")["input_ids"][1],
            6,
            5,
            loaded("b").input_ids[1],
        ]
        assert loaded("a").tokens()[0] == "<s>"


def test_ids_are_decoded_as_far_as_they_are_known() -> None:
    tokenizer = CompactHashTokenizer()
    ids = tokenizer("Hello, Wörld")["input_ids"]
    assert tokenizer.decode(ids) == "[CLS] hello , wörld [SEP]"
    assert tokenizer.decode(ids, skip_special_tokens=True) == "hello , wörld"
    assert tokenizer.batch_decode(torch.tensor([ids, ids]), skip_special_tokens=True) == ["hello , wörld"] * 2
    stranger = CompactHashTokenizer()
    placeholders = stranger.convert_ids_to_tokens(ids)
    assert placeholders[1] == f"<w:{ids[1]:x}>"
    assert stranger.convert_tokens_to_ids(placeholders) == ids
    assert stranger.convert_tokens_to_ids(["WÖRLD", "", "\u200d"]) == [ids[3], 1, 1]


@HASHES
def test_ids_and_signatures_are_those_of_the_hasher(hashing: str) -> None:
    settings = HashSettings(hashing=hashing, hash_seed=5)
    tokenizer, hasher = CompactHashTokenizer(hashing=hashing, hash_seed=5), WordHasher(settings)
    encoding = tokenizer("Hello HELLO hello", add_special_tokens=False)
    assert tokenizer.hash_settings == settings
    assert encoding["input_ids"] == [hasher.word_id("hello")] * 3
    if hashing == "md":
        assert tokenizer.model_input_names == ["input_ids", "token_type_ids", "attention_mask"]
        assert list(encoding) == tokenizer.model_input_names
    else:
        assert tokenizer.model_input_names[-1] == "signatures"
        assert encoding["signatures"] == [hasher.signature("hello")] * 3


def test_a_typo_is_nearer_than_another_word() -> None:
    tokenizer = CompactHashTokenizer(hashing="lsh")
    bits = unpack_signatures(tokenizer("government goverment xylophone", return_tensors="pt")["signatures"])[0]
    word, typo, other = bits[1:4].int()
    assert (word - typo).abs().sum() < (other - typo).abs().sum() - 20


@HASHES
def test_tensors_hold_the_lists(hashing: str) -> None:
    tokenizer = CompactHashTokenizer(hashing=hashing)
    lists = tokenizer(TEXTS, padding=True)
    tensors = tokenizer(TEXTS, padding=True, return_tensors="pt")
    arrays = tokenizer(TEXTS, padding=True, return_tensors="np")
    for name, values in lists.items():
        expected = torch.tensor(values)
        assert tensors[name].dtype == torch.int64 and torch.equal(tensors[name], expected)
        assert torch.equal(torch.from_numpy(arrays[name]), expected)
    with pytest.raises(ValueError, match="padding"):
        tokenizer(TEXTS, return_tensors="pt")


@pytest.mark.parametrize(
    ("arguments", "options", "field"),
    [
        ((None,), {"text_target": "a"}, None),
        ((3,), {}, "text"),
        ((["a", None],), {}, "text"),
        (([1, 2],), {}, "text"),
        (("a",), {"is_split_into_words": True}, "text"),
        ((["a"], "b"), {}, "text_pair"),
        ((["a"], ["b", "c"]), {}, r"len\(text_pair\)"),
        (("a b c",), {"truncation": True, "max_length": 1}, "max_length"),
        (("a b c",), {"truncation": "only_second", "max_length": 4}, "truncation"),
        (("a", "b c d"), {"truncation": "only_first", "max_length": 4}, "truncation"),
        (
            ("a b c d",),
            {"truncation": True, "max_length": 4, "stride": 2, "return_overflowing_tokens": True},
            "stride",
        ),
    ],
)
def test_bad_arguments_are_named(arguments: tuple, options: dict, field: str | None) -> None:
    tokenizer = CompactHashTokenizer()
    if field is None:
        assert tokenizer(*arguments, **options)["input_ids"] == tokenizer("a")["input_ids"]
        return
    with pytest.raises(CompactConfigError, match=f"^`{field}` is "):
        tokenizer(*arguments, **options)


def test_the_cache_stays_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    module = CompactHashTokenizer.__module__
    monkeypatch.setattr(f"{module}._MAX_CACHED_WORDS", 10)
    tokenizer = CompactHashTokenizer(hashing="lsh")
    text = " ".join(map(str, range(100)))
    encoding = tokenizer(text)
    assert encoding.data == CompactHashTokenizer(hashing="lsh")(text).data
    assert 0 < max(map(len, tokenizer.cache.values())) <= 10
