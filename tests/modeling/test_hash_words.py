"""Words are found in every script, at their place in the text, however the text is normalised."""

from __future__ import annotations

import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_compact_embeddings.modeling.hash_words import spelling, word_spans


def words(text: str) -> list[str]:
    return [spelling(text[start:end]) for start, end in word_spans(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hello, World!", ["hello", ",", "world", "!"]),
        ("don't snake_case 3.14 B2B", ["don", "'", "t", "snake", "_", "case", "3", ".", "14", "b2b"]),
        ("?!... $5=€4", ["?!...", "$", "5", "=€", "4"]),
        ("Ärger ÉCOLE ΟΔΟΣ Straße", ["ärger", "école", "οδος", "straße"]),
        ("Mu\u0308ller M\u00fcller", ["müller", "müller"]),
        ("नमस्ते दुनिया", ["नमस्ते", "दुनिया"]),
        ("한국어 ქართული עִבְרִית", ["한국어", "ქართული", "עִבְרִית"]),
        (
            "日本語のテキスト、ラーメンらーめん2024年",
            [*"日本語", "の", "テキスト", "、", "ラーメン", "らーめん", "2024", "年"],
        ),
        ("สวัสดี ครับ", ["ส", "วั", "ส", "ดี", "ค", "รั", "บ"]),
        ("\U00020000\U0003fffd", ["\U00020000", "\U0003fffd"]),
        ("😂😂 👍🏽 👩\u200d👩\u200d👧 🇩🇪🇫🇷 ❤\ufe0f", ["😂", "😂", "👍🏽", "👩👩👧", "🇩🇪", "🇫🇷", "❤"]),
        ("می\u200cخواهم co\u00adoperate", ["میخواهم", "cooperate"]),
        ("a\x00b\tc\u200bd\u3000e\u2028f", ["a", "b", "c", "d", "e", "f"]),
        ("\ufeffa \u0301 \u200d", ["a", "\u0301"]),
        ("a\ud800b\udfff", ["a", "\ufffd", "b", "\ufffd"]),
        ("=\u0338a", ["≠", "a"]),
        ("\ue000x", ["\ue000", "x"]),
        ("", []),
        (" \n\t\x00\u200b", []),
    ],
)
def test_words_of(text: str, expected: list[str]) -> None:
    assert words(text) == expected


def test_offsets_lie_in_the_text_as_it_was_given() -> None:
    text = "\u200e E\u0301cole\u00ad, 日本"
    assert [text[start:end] for start, end in word_spans(text)] == ["E\u0301cole\u00ad", ",", "日", "本"]
    assert word_spans("x" * 1_000_000) == [(0, 1_000_000)]


def test_canonically_equivalent_texts_have_the_same_words() -> None:
    for code in range(sys.maxunicode + 1):
        character = chr(code)
        decomposition = unicodedata.decomposition(character)
        if decomposition and not decomposition.startswith("<"):
            for text in (f"a{character}b", f",{character},", f"日{character}か"):
                assert words(unicodedata.normalize("NFD", text)) == words(text), hex(code)


@given(st.text(st.characters(exclude_categories=())))
def test_any_text_has_words_in_order(text: str) -> None:
    spans = word_spans(text)
    edges = [0, *(edge for span in spans for edge in span), len(text)]
    assert edges == sorted(edges)
    assert all(start < end for start, end in spans)
    assert all(spelling(text[start:end]) for start, end in spans)
    assert all(spelling(text[start:end]).encode() for start, end in spans)
    between = "".join(text[end:start] for end, start in zip(edges[::2], edges[1::2], strict=True))
    assert not any(unicodedata.category(character)[0] in "LNPS" for character in between)


@given(st.text())
def test_spelling_is_final(text: str) -> None:
    for word in words(text):
        assert spelling(word) == word
