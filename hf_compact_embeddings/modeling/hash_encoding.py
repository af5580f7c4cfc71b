"""Rows of hashed words: cut to length, joined with special tokens, padded, and asked where a token lies."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from .errors import config_error
from .hash_words import spelling
from .hashing import MIN_WORD_ID

NO_SIGNATURE = (0, 0)
"""The signature of special tokens and of padding."""


@dataclass
class Words:
    """The tokens of one text before special tokens join them; every list has one entry for each token."""

    ids: list[int] = field(default_factory=list)
    offsets: list[tuple[int, int]] = field(default_factory=list)
    surfaces: list[str] = field(default_factory=list)
    signatures: list[tuple[int, int]] = field(default_factory=list)
    word_ids: Sequence[int] = ()

    def extend(self, other: Words) -> None:
        """Append the tokens of `other`, all but their word ids."""
        self.ids += other.ids
        self.offsets += other.offsets
        self.surfaces += other.surfaces
        self.signatures += other.signatures

    def cut(self, start: int, stop: int) -> Words:
        """Return the tokens from `start` to before `stop`."""
        return Words(
            self.ids[start:stop],
            self.offsets[start:stop],
            self.surfaces[start:stop],
            self.signatures[start:stop],
            self.word_ids[start:stop],
        )


class HashEncoding:
    """A row of tokens with special tokens and padding, with the methods that `BatchEncoding` calls on it.

    It stands where a Rust tokenizer's `Encoding` would, so `word_ids()`, `char_to_token()` and the rest work.
    """

    def __init__(self, signed: bool) -> None:
        """Start without tokens; `signatures` stays empty unless the tokens are `signed`."""
        self.ids: list[int] = []
        self.type_ids: list[int] = []
        self.attention_mask: list[int] = []
        self.special_tokens_mask: list[int] = []
        self.offsets: list[tuple[int, int]] = []
        self.word_ids: list[int | None] = []
        self.sequence_ids: list[int | None] = []
        self.signatures: list[tuple[int, int]] = []
        self.n_sequences = 0
        self._signed = signed
        self._surfaces: list[str] = []

    def __len__(self) -> int:
        """Return the number of tokens."""
        return len(self.ids)

    def add_words(self, words: Words) -> None:
        """Append one sequence."""
        count = len(words.ids)
        self.ids += words.ids
        self.type_ids += [self.n_sequences] * count
        self.attention_mask += [1] * count
        self.special_tokens_mask += [0] * count
        self.offsets += words.offsets
        self.word_ids += words.word_ids
        self.sequence_ids += [self.n_sequences] * count
        self.signatures += words.signatures
        self._surfaces += words.surfaces
        self.n_sequences += 1

    def add_special(self, token_id: int, token: str) -> None:
        """Append a special token; it belongs to the sequence that was added last."""
        self._fill(1, False, token_id, token, max(self.n_sequences - 1, 0), attention=1)

    def pad(self, length: int, side: str, token_id: int, token: str, type_id: int) -> None:
        """Append padding, or put it in front, until there are `length` tokens."""
        self._fill(length - len(self), side == "left", token_id, token, type_id, attention=0)

    def _fill(self, count: int, in_front: bool, token_id: int, token: str, type_id: int, attention: int) -> None:
        """Add `count` times one token that stands for no text."""
        columns: tuple[tuple[list[Any], Any], ...] = (
            (self.ids, token_id),
            (self.type_ids, type_id),
            (self.attention_mask, attention),
            (self.special_tokens_mask, 1),
            (self.offsets, (0, 0)),
            (self.word_ids, None),
            (self.sequence_ids, None),
            (self._surfaces, token),
        )
        for column, value in columns + (((self.signatures, NO_SIGNATURE),) if self._signed else ()):
            start = 0 if in_front else len(column)
            column[start:start] = [value] * count

    @property
    def tokens(self) -> list[str]:
        """The words as they are hashed, and the special tokens."""
        return [
            spelling(surface) if token_id >= MIN_WORD_ID else surface
            for token_id, surface in zip(self.ids, self._surfaces, strict=True)
        ]

    def token_to_sequence(self, token: int) -> int | None:
        """Return the sequence that a token belongs to."""
        return self.sequence_ids[token]

    def token_to_word(self, token: int) -> int | None:
        """Return the word that a token belongs to."""
        return self.word_ids[token]

    def token_to_chars(self, token: int) -> tuple[int, int] | None:
        """Return where a token lies in its text."""
        return None if self.sequence_ids[token] is None else self.offsets[token]

    def char_to_token(self, char: int, sequence_index: int = 0) -> int | None:
        """Return the token that covers a character of a sequence."""
        spans = zip(self.sequence_ids, self.offsets, strict=True)
        return next(
            (
                token
                for token, (sequence, (start, end)) in enumerate(spans)
                if sequence == sequence_index and start <= char < end
            ),
            None,
        )

    def char_to_word(self, char: int, sequence_index: int = 0) -> int | None:
        """Return the word that covers a character of a sequence."""
        token = self.char_to_token(char, sequence_index)
        return None if token is None else self.word_ids[token]

    def word_to_tokens(self, word: int, sequence_index: int = 0) -> tuple[int, int] | None:
        """Return the tokens of a word, as (first, one after the last)."""
        owners = zip(self.sequence_ids, self.word_ids, strict=True)
        tokens = [token for token, owner in enumerate(owners) if owner == (sequence_index, word)]
        return (tokens[0], tokens[-1] + 1) if tokens else None

    def word_to_chars(self, word: int, sequence_index: int = 0) -> tuple[int, int] | None:
        """Return where a word lies in its text."""
        tokens = self.word_to_tokens(word, sequence_index)
        return None if tokens is None else (self.offsets[tokens[0]][0], self.offsets[tokens[1] - 1][1])


def samples_of(text: Any, text_pair: Any, is_split_into_words: bool) -> tuple[list[tuple[Any, Any]], bool]:
    """Return a tokenizer's arguments as (first, second or None) pairs, and whether they were a batch."""
    batched = isinstance(text, (list, tuple))
    if is_split_into_words and not batched:
        raise config_error(
            "text", type(text).__name__, "split into words, it is a list of words, or a list of such lists"
        )
    if is_split_into_words and batched:
        batched = len(text) > 0 and isinstance(text[0], (list, tuple))
    if not batched:
        return [(text, text_pair)], False
    if text_pair is not None:
        if not isinstance(text_pair, (list, tuple)):
            raise config_error("text_pair", type(text_pair).__name__, "it is a list, as `text` is")
        if len(text_pair) != len(text):
            raise config_error("len(text_pair)", len(text_pair), f"`text` has {len(text)}")
        return list(zip(text, text_pair, strict=True)), True
    return [_pair_of(item, is_split_into_words) for item in text], True


def _pair_of(item: Any, is_split_into_words: bool) -> tuple[Any, Any]:
    # A list of two words is one sequence; only a tuple of two lists makes a pair of split sequences.
    nested = isinstance(item, tuple) and len(item) == 2 and not isinstance(item[0], str)
    if nested or (isinstance(item, (list, tuple)) and len(item) == 2 and not is_split_into_words):
        return item[0], item[1]
    return item, None


def windows(
    sequences: list[Words], room: int | None, strategy: str, stride: int | None, side: str
) -> Iterator[tuple[Words, ...]]:
    """Cut one or two sequences so that together they fit.

    Args:
        sequences: one sequence or a pair.
        room: tokens that both may have together; None for any number.
        strategy: "longest_first", "only_first" or "only_second", as in any tokenizer.
        stride: tokens that one window repeats from the last; None for the first window alone.
        side: "right" or "left", where tokens are cut off.

    Yields:
        One window of each sequence, in every combination; the first is what truncation keeps.
    """
    lengths = [len(words.ids) for words in sequences]
    if room is None or sum(lengths) <= room:
        yield tuple(sequences)
        return
    limits = _limits(lengths, room, strategy)
    yield from product(*(_parts(words, limit, stride, side) for words, limit in zip(sequences, limits, strict=True)))


def _limits(lengths: list[int], room: int, strategy: str) -> list[int]:
    """Return how many tokens each sequence keeps."""
    if strategy == "longest_first":
        if len(lengths) == 1:
            return [room]
        shorter = min(lengths)
        limits = [shorter, room - shorter] if 2 * shorter <= room else [room // 2, room - room // 2]
        return limits if lengths[0] <= lengths[1] else limits[::-1]
    target = 0 if strategy == "only_first" else 1
    if target >= len(lengths):
        raise config_error("truncation", strategy, "there is no second sequence")
    kept = lengths[target] - (sum(lengths) - room)
    if kept <= 0:
        raise config_error("truncation", strategy, "that sequence is too short to make up for the rest")
    return [kept if index == target else length for index, length in enumerate(lengths)]


def _parts(words: Words, limit: int, stride: int | None, side: str) -> Iterator[Words]:
    """Yield the windows of at most `limit` tokens, from the side that is kept."""
    count = len(words.ids)
    if count <= limit:
        yield words
        return
    yield words.cut(0, limit) if side == "right" else words.cut(count - limit, count)
    if stride is None or limit == 0:
        return
    if stride >= limit:
        raise config_error("stride", stride, f"it is below {limit}, the tokens that a window has")
    done = limit
    while done < count:
        start = done - stride
        done = min(start + limit, count)
        yield words.cut(start, done) if side == "right" else words.cut(count - done, count - start)
