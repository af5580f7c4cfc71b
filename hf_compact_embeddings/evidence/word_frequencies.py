"""How often tokens occur in a language, without any text of it: its words' frequencies, through the tokenizer.

The frequencies are those of the package `wordfreq`: some forty languages, in lower case, without punctuation, and with
the digits of numbers hidden. What a text has beside words is put back: capitals, punctuation, numbers, and the space
before a word.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import random
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..modeling.errors import CompactConfigError

_EXTRA = "pip install 'hf_compact_embeddings[words]'"
# Words in all languages together, so that many languages take no longer than one.
_WORDS = 60_000
_LEAST_WORDS = 2_500
# A language is in the vocabulary if so many of its words are one token each. The most frequent of all do not count:
# they are short, and many languages have some of them.
_WORDS_TO_JUDGE = slice(100, 500)
_LEAST_SHARE_WHOLE = 0.5
# A language that was asked for has some tokens at least, if only those of its letters.
_LEAST_SHARE_KNOWN = 0.05
# Written without spaces; there a piece seldom ends where a word does.
_WITHOUT_SPACES = frozenset({"ja", "zh"})
# Of words, also of those that stand first in a sentence; German capitalises its nouns.
_CAPITALS, _GERMAN_CAPITALS = 0.15, 0.35
_WORDS_OF_A_SENTENCE = 18
# For each word, about as in English prose, where the signs of other scripts have the same say.
_PUNCTUATION = {".": 0.055, ",": 0.05, '"': 0.01, "-": 0.01, "'": 0.008, ")": 0.004, "(": 0.004, ":": 0.004, "?": 0.004}
_PUNCTUATION |= {"!": 0.003, ";": 0.002, "/": 0.001}
_PUNCTUATION_OF = {
    "zh": {"。": 0.055, "，": 0.06, "、": 0.01, "：": 0.004, "“": 0.005, "”": 0.005, "？": 0.004, "！": 0.003},
    "ja": {"。": 0.055, "、": 0.06, "「": 0.008, "」": 0.008, "？": 0.003, "！": 0.002},
    "ar": {".": 0.05, "،": 0.05, '"': 0.01, ":": 0.006, "؟": 0.004},
    "hi": {"।": 0.05, ",": 0.04, "-": 0.008, "?": 0.003},
}
# As if a text of this many words had been counted: counts are compared with 1.
_EXPECTED_WORDS = 1e7
_FORMS_PER_BATCH = 5_000
# Of a token that stands in no list, in a language or not; rounds after which shares hardly move; and what a language
# must have of texts to be one of theirs.
_CHANCE_OF_THE_REST, _ROUNDS, _LEAST_SHARE_OF_TEXTS = 1e-6, 30, 0.03
# What was counted for a tokenizer, by languages, rows and the size of its vocabulary: it takes seconds.
_counted: weakref.WeakKeyDictionary[PreTrainedTokenizerBase, dict[tuple[Any, ...], Tensor]] = (
    weakref.WeakKeyDictionary()
)


def is_available() -> bool:
    """Tell whether the package with the frequencies can be imported."""
    try:
        import wordfreq  # noqa: F401
    except ImportError:
        return False
    return True


def known_languages() -> list[str]:
    """Return the codes of all languages with frequencies."""
    return sorted(_wordfreq().available_languages("small"))


def require_known(codes: Iterable[str]) -> None:
    """Raise if there are no word frequencies of a language."""
    known = known_languages()
    for code in codes:
        if code not in known:
            raise CompactConfigError(f"`languages` names {code!r}; there are word frequencies of {', '.join(known)}.")


@dataclasses.dataclass(frozen=True)
class Language:
    """The words of a language, the most frequent first, and how often each occurs among all of them.

    Attributes:
        code: of the language.
        words: as they are written in lower case.
        shares: of all words of a text.
    """

    code: str
    words: Sequence[str]
    shares: Sequence[float]

    @property
    def space(self) -> str:
        """What stands between words."""
        return "" if self.code in _WITHOUT_SPACES else " "

    def forms(self) -> Iterator[tuple[str, float]]:
        """Yield what stands in a text, and how often for each word: words in both cases, numbers, punctuation."""
        capitals = _GERMAN_CAPITALS if self.code == "de" else _CAPITALS
        for word, share in zip(self.words, self.shares, strict=True):
            for form, part in _numbers(word):
                capital = form[:1].upper() + form[1:]
                if capital == form:
                    yield self.space + form, share * part
                else:
                    yield self.space + form, share * part * (1 - capitals)
                    yield self.space + capital, share * part * capitals
        yield from _PUNCTUATION_OF.get(self.code, _PUNCTUATION).items()

    def sentence(self, choices: random.Random) -> str:
        """Return words as they come, with the punctuation of a sentence."""
        count = max(3, round(choices.gauss(_WORDS_OF_A_SENTENCE, _WORDS_OF_A_SENTENCE / 3)))
        marks = _PUNCTUATION_OF.get(self.code, _PUNCTUATION)
        comma, stop = next(mark for mark in marks if mark in ",，、،"), next(iter(marks))
        drawn = choices.choices(self.words, cum_weights=self._cumulated, k=count)
        words = [choices.choice(list(_numbers(word)))[0] for word in drawn]
        words[0] = words[0][:1].upper() + words[0][1:]
        ends = [comma if choices.random() < marks[comma] else "" for _ in words[1:]] + [stop]
        return self.space.join(word + end for word, end in zip(words, ends, strict=True))

    @functools.cached_property
    def _cumulated(self) -> list[float]:
        return list(itertools.accumulate(self.shares))


def _numbers(word: str) -> Iterator[tuple[str, float]]:
    """Yield a word; in the place of hidden digits, numbers, each with its share."""
    if not word.isdecimal() or set(word) != {"0"}:
        yield word, 1.0
        return
    # Numbers of any length are seldom one token: a few stand for all. Small first digits are more frequent.
    numbers = range(10 ** (len(word) - 1) if len(word) > 1 else 0, 10 ** len(word), max(1, 10 ** len(word) // 1000))
    weights = [1 / (1 + number // 10 ** (len(word) - 1)) for number in numbers]
    total = sum(weights)
    for number, weight in zip(numbers, weights, strict=True):
        yield str(number), weight / total


def languages_for(
    tokenizer: PreTrainedTokenizerBase, codes: Iterable[str] | None = None
) -> tuple[dict[str, Language], list[str]]:
    """Return the languages whose words are counted, and those that were asked for but of which no token is known.

    Args:
        tokenizer: of the model.
        codes: of the languages; by default all that the vocabulary shows.
    """
    found: list[str] = []
    without: list[str] = []
    for code in known_languages() if codes is None else codes:
        share = _share_of_known_words(_language(code, _WORDS_TO_JUDGE.stop), tokenizer, whole=codes is None)
        if share >= (_LEAST_SHARE_WHOLE if codes is None else _LEAST_SHARE_KNOWN):
            found.append(code)
        else:
            without.append(code)
    size = max(_LEAST_WORDS, _WORDS // max(1, len(found)))
    return {code: _language(code, size) for code in found}, [] if codes is None else without


def counts_of_words(languages: Mapping[str, Language], tokenizer: PreTrainedTokenizerBase, rows: int) -> Tensor:
    """Return how often tokens may be expected to occur in texts of these languages alike (V,), float64."""
    known = _counted.setdefault(tokenizer, {})
    key = (tuple((code, len(language.words)) for code, language in languages.items()), rows, len(tokenizer))
    if key not in known:
        known[key] = _count(languages, tokenizer, rows)
    return known[key].clone()


def _count(languages: Mapping[str, Language], tokenizer: PreTrainedTokenizerBase, rows: int) -> Tensor:
    counts = torch.zeros(rows, dtype=torch.float64)
    for language in languages.values():
        forms = language.forms()
        while batch := list(itertools.islice(forms, _FORMS_PER_BATCH)):
            encoded = _pieces([form for form, _ in batch], tokenizer)
            ids = torch.from_numpy(np.fromiter(itertools.chain.from_iterable(encoded), np.int64))
            shares = torch.tensor([share for _, share in batch], dtype=torch.float64)
            shares = shares.repeat_interleave(torch.tensor([len(pieces) for pieces in encoded]))
            inside = ids < rows
            counts.index_add_(0, ids[inside], shares[inside])
    counts *= _EXPECTED_WORDS / max(1, len(languages))
    special = [token for token in tokenizer.all_special_ids if token < rows and token != tokenizer.unk_token_id]
    # Those that begin and end a text do so once a sentence; which they are matters little: all are kept exactly.
    counts[special] = _EXPECTED_WORDS / _WORDS_OF_A_SENTENCE
    return counts


def languages_in(
    counted: Tensor, languages: Mapping[str, Language], tokenizer: PreTrainedTokenizerBase
) -> dict[str, float]:
    """Return which languages texts are written in, and their shares, as far as the tokens tell that were counted (V,).

    The shares under which the words' frequencies make the counts likeliest (expectation maximisation); languages of few
    tokens, which every text seems to hold some of, are left out.
    """
    special = [token for token in tokenizer.all_special_ids if token < len(counted)]
    seen = counted.index_fill(0, torch.tensor(special, dtype=torch.int64), 0.0).nonzero().squeeze(1)
    if not languages or not len(seen):
        return {}
    chances = torch.stack(
        [counts_of_words({code: language}, tokenizer, len(counted))[seen] for code, language in languages.items()]
    )
    # Whatever no list of words holds is said in none of them.
    chances = torch.cat([chances / _EXPECTED_WORDS, torch.full((1, len(seen)), _CHANCE_OF_THE_REST)])
    weights = counted[seen].double()
    shares = torch.full((len(chances),), 1 / len(chances), dtype=torch.float64)
    for _ in range(_ROUNDS):
        likely = shares[:, None] * chances
        shares = (likely / likely.sum(0) * weights).sum(1) / weights.sum()
    found = {
        code: float(share) for code, share in zip(languages, shares, strict=False) if share >= _LEAST_SHARE_OF_TEXTS
    }
    return {code: share / sum(found.values()) for code, share in found.items()}


def sentences_of(languages: Mapping[str, Language], count: int, seed: int) -> list[str]:
    """Return texts of words that are drawn one by one, of all languages in turn."""
    choices = random.Random(seed)
    turns = itertools.cycle(languages.values())
    return [next(turns).sentence(choices) for _ in range(count)]


def _share_of_known_words(language: Language, tokenizer: PreTrainedTokenizerBase, whole: bool) -> float:
    """Return how many of a language's words are one token each; or, if not `whole`, are made of known tokens."""
    words, unknown = language.words[_WORDS_TO_JUDGE], tokenizer.unk_token_id
    encoded = _pieces([language.space + word for word in words], tokenizer)
    known = 0
    for word, pieces in zip(words, encoded, strict=True):
        # Without spaces a word's characters may be tokens: as many as it has are no sign of the language.
        most = (len(word) + 1) // 2 if language.code in _WITHOUT_SPACES else 1
        known += bool(pieces) and unknown not in pieces and (not whole or len(pieces) <= most)
    return known / len(words)


def _pieces(forms: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Return the tokens of forms as they are within a text: behind another word, or without it where it merges."""
    before = "a" if forms and forms[0].startswith(" ") else ":"
    plainly = {"add_special_tokens": False, "padding": False, "truncation": False, "verbose": False}
    prefix = tokenizer(before, **plainly)["input_ids"]
    texts = [before + form for form in forms]
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        encoded = tokenizer(texts, **plainly)["input_ids"]
    else:
        # Three times as fast: nothing but ids is made. What is cut and padded was just set, with the prefix.
        encoded = [pieces.ids for pieces in backend.encode_batch_fast(texts, add_special_tokens=False)]
    cut = len(prefix)
    return [pieces[cut:] if pieces[:cut] == prefix else pieces for pieces in encoded]


@functools.lru_cache(maxsize=128)
def _language(code: str, count: int) -> Language:
    # The short lists hold the same as the long ones, as far as they go, and are read ten times as fast.
    for wordlist in ("small", "best"):
        # The words of the list's n-th part have a frequency of -n hundredths of a Bel.
        parts = enumerate(_wordfreq().get_frequency_list(code, wordlist))
        ordered = ((word, 10 ** (-part / 100)) for part, words in parts for word in words)
        words, frequencies = zip(*itertools.islice(ordered, count), strict=True)
        if len(words) == count:
            break
    total = sum(frequencies)
    return Language(code, words, [frequency / total for frequency in frequencies])


def _wordfreq():  # type: ignore[no-untyped-def]  # noqa: ANN202
    try:
        import wordfreq
    except ImportError as error:
        raise CompactConfigError(f"The package `wordfreq` is missing, which `languages` needs: {_EXTRA}.") from error
    return wordfreq
