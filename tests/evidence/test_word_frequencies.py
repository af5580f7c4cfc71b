"""Frequencies of words become those of tokens: of the languages that a vocabulary shows, in the forms of a text."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import hf_compact_embeddings as hce
from hf_compact_embeddings.evidence import gathering
from hf_compact_embeddings.evidence import word_frequencies as module
from hf_compact_embeddings.evidence.frequencies import count_tokens
from hf_compact_embeddings.evidence.tables import find_tables
from hf_compact_embeddings.evidence.word_frequencies import (
    Language,
    counts_of_words,
    known_languages,
    languages_for,
    languages_in,
    sentences_of,
)
from hf_compact_embeddings.modeling.architectures import find_input_table

from ..tiny_models import tiny_model
from ..tools import tiny_tokenizer


def word_tokenizer(words: list[str], **options: Any) -> PreTrainedTokenizerFast:
    """A tokenizer that knows whole words, signs, and [UNK]."""
    vocabulary = {word: number for number, word in enumerate(["[UNK]", *dict.fromkeys(words)])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    if options.pop("lowercase", False):
        tokenizer.normalizer = normalizers.Lowercase()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", **options)


def words_of(code: str, count: int = 3000) -> list[str]:
    return list(module._language(code, count).words)


def byte_level_tokenizer(words: list[str]) -> PreTrainedTokenizerFast:
    """A tokenizer whose words carry the space before them, as GPT-2's."""
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    vocabulary = {piece: number for number, piece in enumerate([*sorted(alphabet), *(f"Ġ{word}" for word in words)])}
    merges = []
    for word in words:
        left = "Ġ"
        for letter in word:
            merges.append((left, letter))
            left += letter
            vocabulary.setdefault(left, len(vocabulary))
    tokenizer = Tokenizer(models.BPE(vocabulary, list(dict.fromkeys(merges))))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def test_languages_are_those_of_the_vocabulary() -> None:
    tokenizer = word_tokenizer(words_of("de") + words_of("fi"))
    found, without = languages_for(tokenizer)
    assert set(found) == {"de", "fi"} and without == []
    assert languages_for(tiny_tokenizer())[0] == {}
    asked, without = languages_for(tokenizer, ["de", "ko"])
    assert (list(asked), without) == (["de"], ["ko"])


def test_a_language_that_nobody_knows() -> None:
    with pytest.raises(hce.CompactConfigError, match="`languages` names 'xx'; there are word frequencies of ar, bg"):
        hce.compress(tiny_model("bert"), "scalar", tokenizer=tiny_tokenizer(), languages=["xx"])
    assert len(known_languages()) > 40


def test_a_language_without_tokens_is_named_and_left_out(caplog: pytest.LogCaptureFixture) -> None:
    compact = hce.compress(
        tiny_model("bert"), "rotated", tokenizer=tiny_tokenizer(), languages=["ko"], bits_per_weight=6.0
    )
    assert "no known tokens for the language 'ko': it is left out" in caplog.text
    assert "as far as the tokenizer tells" in compact.config.compact_source["evidence"]


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wordfreq", None)
    assert not module.is_available()
    with pytest.raises(hce.CompactConfigError, match=r"`wordfreq` is missing.*hf_compact_embeddings\[words\]"):
        hce.plan(tiny_model("bert"), ratio=4, tokenizer=tiny_tokenizer(), languages=["de"])
    hce.compress(tiny_model("bert"), "rotated", tokenizer=tiny_tokenizer(), bits_per_weight=6.0)


def test_counts_are_the_frequencies_of_the_words() -> None:
    language = Language("en", ["the", "cat", "00"], [0.6, 0.3, 0.1])
    tokenizer = word_tokenizer(["the", "The", "cat", "Cat", ".", ",", *map(str, range(100))])
    counts = counts_of_words({"en": language}, tokenizer, 200)
    counts /= module._EXPECTED_WORDS
    known = dict(zip(tokenizer.convert_ids_to_tokens(range(len(tokenizer))), counts.tolist(), strict=False))
    assert known["the"] == pytest.approx(0.6 * 0.85) and known["The"] == pytest.approx(0.6 * 0.15)
    assert known["cat"] + known["Cat"] == pytest.approx(0.3)
    assert sum(known[str(number)] for number in range(10, 100)) == pytest.approx(0.1)
    assert known["10"] == pytest.approx(1.5 * known["25"]) and known["25"] > known["99"] > 0, (
        "small first digits are more frequent"
    )
    assert known["."] > known[","] > 0.04 and known["5"] == 0
    assert counts[len(tokenizer) :].eq(0).all()
    lower = (
        counts_of_words({"en": language}, word_tokenizer(["the", "cat"], lowercase=True), 3) / module._EXPECTED_WORDS
    )
    assert lower[1:].tolist() == pytest.approx([0.6, 0.3])


def test_words_have_the_space_before_them() -> None:
    tokenizer = byte_level_tokenizer(["the", "cat"])
    counts = counts_of_words({"en": Language("en", ["the", "cat"], [0.7, 0.3])}, tokenizer, len(tokenizer))
    the, cat = (tokenizer.convert_tokens_to_ids(f"Ġ{word}") for word in ("the", "cat"))
    assert counts[the] / counts[cat] == pytest.approx(7 / 3)
    # "a the": the "a" before it is no part of it.
    assert counts[tokenizer.convert_tokens_to_ids("t")] < counts[the] / 3


def test_languages_have_the_same_say() -> None:
    tokenizer = word_tokenizer(["und", "ja"])
    languages = {"de": Language("de", ["und"], [1.0]), "fi": Language("fi", ["ja"], [1.0])}
    counts = counts_of_words(languages, tokenizer, 3)
    assert counts[1] * (1 - module._CAPITALS) == pytest.approx(float(counts[2]) * (1 - module._GERMAN_CAPITALS))


@pytest.mark.parametrize("code", ["en", "zh", "ar"])
def test_sentences(code: str) -> None:
    languages = {code: module._language(code, 500)}
    texts = sentences_of(languages, 50, seed=0)
    assert texts == sentences_of(languages, 50, seed=0) != sentences_of(languages, 50, seed=1)
    assert all(text[-1] in ".。" for text in texts)
    assert (" " in texts[0]) == (code != "zh")
    assert len(set(texts)) == 50 and torch.tensor([len(text) for text in texts]).float().mean() > 20


def test_languages_that_are_asked_for_leave_little_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    german, finnish = words_of("de", 2000), words_of("fi", 2000)
    tokenizer = word_tokenizer(german + finnish)
    model = tiny_model("bert", vocab_size=len(tokenizer))
    only_finnish = sorted(set(tokenizer.convert_tokens_to_ids(finnish)) - set(tokenizer.convert_tokens_to_ids(german)))
    told: list[str] = []
    monkeypatch.setattr(gathering, "tell", told.append)

    def share_of_finnish(**given: Any) -> float:
        counts = gathering.gather(model, find_input_table(model), tokenizer=tokenizer, **given).counts
        assert counts is not None
        return float(counts[only_finnish].sum() / counts.sum())

    assert share_of_finnish() > 0.1
    assert len(told) == 1 and "2 languages" in told[0] and "de, fi" in told[0]
    assert 0 < share_of_finnish(languages=["de"]) < 0.02 and len(told) == 1


def test_texts_tell_their_languages_and_these_more_words() -> None:
    german, finnish = words_of("de", 2000), words_of("fi", 2000)
    tokenizer = word_tokenizer(german + finnish + words_of("en", 2000))
    found, _ = languages_for(tokenizer)
    assert list(found) == ["de", "en", "fi"]
    texts = [*sentences_of({"de": found["de"]}, 300, seed=0), *sentences_of({"fi": found["fi"]}, 100, seed=0)]
    model = tiny_model("llama-untied", vocab_size=len(tokenizer))
    evidence = gathering.gather(model, find_input_table(model), tokenizer=tokenizer, texts=texts)
    counted, counts = count_tokens(texts, tokenizer, len(tokenizer)), evidence.counts
    shares = languages_in(counted, found, tokenizer)
    assert shares == evidence.languages_of_texts and list(shares) == ["de", "fi"]
    assert shares["de"] == pytest.approx(0.75, abs=0.08) and sum(shares.values()) == pytest.approx(1)
    unseen = [token for word in german if counted[token := tokenizer.convert_tokens_to_ids(word)] == 0]
    more = (counts[unseen] > 0).double().mean()
    assert len(unseen) > 300 and more > 0.95, "rare words of a language, which a few texts leave out; digits are hidden"
    seen = tokenizer.convert_tokens_to_ids(german[0])
    assert counts[seen] / counts.sum() == pytest.approx(float(counted[seen] / counted.sum()), rel=0.3)
    assert "with more words (de, fi)" in evidence.in_words({"counts"})
    assert languages_in(torch.zeros(len(tokenizer)), found, tokenizer) == {}


@pytest.mark.parametrize("architecture", ["llama", "llama-untied"])
def test_what_a_head_gives_is_what_comes_next_in_the_texts_that_were_given(architecture: str) -> None:
    tokenizer = word_tokenizer(words_of("de", 2000))
    model = tiny_model(architecture, vocab_size=len(tokenizer))
    texts = sentences_of(languages_for(tokenizer)[0], 50, seed=0)
    tables = find_tables(model, "all")
    evidence = gathering.gather(model, tables[0], tokenizer=tokenizer, texts=texts)
    counted = count_tokens(texts, tokenizer, len(tokenizer))
    assert torch.equal(evidence.counts, counted) == (len(tables) == 1) == (architecture == "llama")
    assert torch.equal(evidence.of(tables[-1]).counts, counted), "whatever was found for the input table first"
