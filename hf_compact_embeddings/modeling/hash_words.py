"""Words of a text, for any script, without a vocabulary: where they lie, and how they are spelled.

A word is one of
- a run of letters and digits with their combining marks;
- a run of punctuation and symbols;
- one ideograph, or one letter with its marks in a script that writes no spaces between words (Thai, Lao,
  Khmer, Burmese and their relatives); hiragana and katakana make runs, apart from each other and the rest;
- one emoji, with its modifiers and what a zero-width joiner adds to it; one flag.

White space, control characters and the zero-width space separate words. Other invisible characters (joiners,
soft hyphens, direction marks, variation selectors) belong to the word that they follow and do not count in
its spelling. Lone surrogates and private characters are symbols. Unassigned code points are letters, so that
fewest words change when Python's Unicode tables grow.

Accents and compatibility characters stay as they are (é is not e, ﬁ is not fi): normalisation is NFC alone.
Canonically equivalent texts (NFC, NFD) have the same words, except where a word is so long that it is cut.
"""

from __future__ import annotations

import re
import unicodedata

_Ranges = tuple[tuple[int, int], ...]

# First and last code points: radicals, iteration marks, the CJK blocks and extension planes, Tangut, Nushu.
_IDEOGRAPHS: _Ranges = (
    (0x2E80, 0x2FDF),
    (0x3005, 0x3007),
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x17000, 0x18DFF),
    (0x1B170, 0x1B2FF),
    (0x20000, 0x3FFFD),
)
# Thai and Lao, Myanmar, Khmer, Tai Le and New Tai Lue, Tai Tham, the two Myanmar extensions with Tai Viet.
_UNSPACED: _Ranges = (
    (0x0E00, 0x0EFF),
    (0x1000, 0x109F),
    (0x1780, 0x17FF),
    (0x1950, 0x19DF),
    (0x1A20, 0x1AAF),
    (0xA9E0, 0xA9FF),
    (0xAA60, 0xAADF),
)
_HIRAGANA: _Ranges = ((0x3041, 0x309F), (0x1B001, 0x1B11F))
_KATAKANA: _Ranges = (
    (0x30A1, 0x30FF),
    (0x31F0, 0x31FF),
    (0xFF66, 0xFF9D),
    (0x1B000, 0x1B000),
    (0x1B120, 0x1B16F),
)
_EMOJI: _Ranges = ((0x2300, 0x23FF), (0x2600, 0x27BF), (0x2B00, 0x2BFF), (0x1F000, 0x1FAFF))
_REGIONAL_INDICATORS: _Ranges = ((0x1F1E6, 0x1F1FF),)
# Letters and symbols by category that act as marks: Japanese length and voicing marks, emoji skin tones.
_MARKS: _Ranges = ((0x30FC, 0x30FC), (0xFF70, 0xFF70), (0xFF9E, 0xFF9F), (0x1F3FB, 0x1F3FF))
_VARIATION_SELECTORS: _Ranges = ((0x180B, 0x180F), (0xFE00, 0xFE0F), (0xE0100, 0xE01EF))
_LETTER_BLOCKS = (("i", _IDEOGRAPHS + _UNSPACED), ("h", _HIRAGANA), ("k", _KATAKANA))
_SYMBOL_BLOCKS = (("r", _REGIONAL_INDICATORS), ("e", _EMOJI), ("i", _IDEOGRAPHS))
# The blocks that decide, by category; emoji and ideographs are placed before Python's tables know them.
_BLOCKS = {
    **dict.fromkeys(("Lu", "Ll", "Lt", "Lm", "Lo", "Nl"), _LETTER_BLOCKS),
    **dict.fromkeys(("So", "Cn"), _SYMBOL_BLOCKS),
}
_ZERO_WIDTH_SPACE, _ZERO_WIDTH_JOINER = 0x200B, 0x200D

# One letter for each class of characters (see `_class_of`). A text rewritten in them keeps its length, so the
# spans of the matches are the words' own.
_WORD = re.compile("[wm][wmfz]*|i[mfz]*|h[hmfz]*|k[kmfz]*|e[mfz]*(?:(?<=z)e[mfz]*)*|rr?[mfz]*|p[pmfz]*")


def word_spans(text: str) -> list[tuple[int, int]]:
    """Return where the words of a text lie, as (first character, character after the last)."""
    return [match.span() for match in _WORD.finditer(text.translate(_CLASSES))]


def spelling(word: str) -> str:
    """Return a word as it is hashed: lower case, NFC, without invisible characters.

    Lone surrogates, which no encoding can carry, become U+FFFD.
    """
    if word.isascii():
        return word.lower()
    return unicodedata.normalize("NFC", word.translate(_VISIBLE).lower())


class _CharacterClasses(dict[int, str]):
    """The class of every character, looked up once; a table for `str.translate`."""

    def __missing__(self, code: int) -> str:
        self[code] = found = _class_of(code)
        return found


class _VisibleCharacters(dict[int, str | None]):
    """What a character counts as in a spelling, None for nothing; a table for `str.translate`."""

    def __missing__(self, code: int) -> str | None:
        surrogate = 0xD800 <= code <= 0xDFFF
        invisible = _class_of(code) in "fz"
        self[code] = kept = None if invisible else "\ufffd" if surrogate else chr(code)
        return kept


_CLASSES = _CharacterClasses()
_VISIBLE = _VisibleCharacters()


def _class_of(code: int) -> str:
    """Return the class of a character.

    w: letters and digits; m: marks; i: stands alone; h, k: hiragana, katakana; e: emoji; r: half of a flag;
    p: punctuation and symbols; f: invisible; z: the zero-width joiner; a space: separators.
    """
    category = unicodedata.category(chr(code))
    if category == "Cc" or category[0] == "Z" or code == _ZERO_WIDTH_SPACE:
        return " "
    if code == _ZERO_WIDTH_JOINER:
        return "z"
    if category == "Cf" or _within(code, _VARIATION_SELECTORS):
        return "f"
    if category[0] == "M" or _within(code, _MARKS):
        return "m"
    if category in _BLOCKS:
        for found, ranges in _BLOCKS[category]:
            if _within(code, ranges):
                return found
    return "w" if category[0] in "LN" or category == "Cn" else "p"


def _within(code: int, ranges: _Ranges) -> bool:
    return any(first <= code <= last for first, last in ranges)
