"""Hashes of words: the id of a word, its 128-bit signature, and both as bits in a tensor.

Nothing here looks a word up in a vocabulary, and nothing depends on the process, the machine or
`PYTHONHASHSEED`: every hash is BLAKE2b with a fixed key, every mixing step is exact 64-bit arithmetic.

A word id has 63 bits: a tag of 11 bits that is derived from the hash settings (and is never 0), then 52 bits
of the word's digest. So an id of a word is at least `MIN_WORD_ID`, lies apart from special tokens and
from any ordinary tokenizer's ids, and tells which settings made it. Under "md" nothing else has to travel: the
model expands the id to 128 bits. Under "lsh" the bits say how the word is spelled, so they travel beside it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from hashlib import blake2b
from typing import Any, TypeVar

import torch
from torch import Tensor

from .errors import config_error

_Value = TypeVar("_Value")

SIGNATURE_BITS = 128
HASH_VERSION = 1
MAX_WORD_CHARS = 128
"""Characters of a word that count; what follows them in a longer word is ignored."""

_DIGEST_BITS = 52
_TAGS = 1 << 11
MIN_WORD_ID = 1 << _DIGEST_BITS

# Control characters never occur inside a word, so no word can imitate a boundary.
_WORD_START, _WORD_END = "\x02", "\x03"
_MAX_CACHED_PIECES = 1 << 16

# The signature's votes are counted in one big integer of 128 lanes, because adding two such integers is one
# operation of the interpreter. A word of 128 characters with its boundaries has at most 8,515 distinct n-grams,
# so a lane of 16 bits does not overflow.
_LANE_BITS = 16
_LANE_ONES = sum(1 << (_LANE_BITS * lane) for lane in range(SIGNATURE_BITS))
_LANE_TOPS = _LANE_ONES << (_LANE_BITS - 1)
_LANES_OF_BYTE = [b"".join(bytes((byte >> bit & 1, 0)) for bit in range(8)) for byte in range(256)]
_MASK_32 = (1 << 32) - 1
# Below 2^31, so that its product with a word of 32 bits stays below 2^63.
_MULTIPLIER = 0x045D9F3B
_STEPS = tuple(0x9E3779B9 * word & _MASK_32 for word in range(1, 5))
_TOP_AS_DIGIT = bytes(ord("1") if byte else ord("0") for byte in range(256))


@dataclass(frozen=True, kw_only=True)
class HashSettings:
    """What decides the hash of a word; two settings that differ give unrelated hashes.

    Args:
        hashing: "md" (a digest of the word: words alike in spelling are unrelated) or "lsh" (SimHash of the
            word's pieces: words alike in spelling have signatures alike).
        ngram_sizes: lengths of the character n-grams that are the pieces of a word; under "lsh" only, where
            no subword tokenizer gives the pieces.
        hash_seed: draws another family of hashes.
        hash_version: the revision of the hash functions.
        pieces: digest of the subword tokenizer that gives the pieces, under "lsh" only.
    """

    hashing: str = "md"
    ngram_sizes: Sequence[int] = (2, 3, 4)
    hash_seed: int = 0
    hash_version: int = HASH_VERSION
    pieces: str | None = None

    def __post_init__(self) -> None:
        """Check every field, and empty those that have no influence, so that equal hashes compare equal."""
        if self.hashing not in ("md", "lsh"):
            raise config_error("hashing", self.hashing, 'it is one of "md", "lsh"')
        if self.hash_version != HASH_VERSION:
            raise config_error("hash_version", self.hash_version, f"this code computes version {HASH_VERSION} only")
        if not _is_int(self.hash_seed) or not 0 <= self.hash_seed < 1 << 63:
            raise config_error("hash_seed", self.hash_seed, "it is a whole number from 0 to 2^63 - 1")
        if self.pieces is not None and self.hashing != "lsh":
            raise config_error("pieces", self.pieces, 'subword pieces belong to `hashing="lsh"`')
        used = self.hashing == "lsh" and self.pieces is None
        sizes = tuple(self.ngram_sizes) if used and isinstance(self.ngram_sizes, Sequence) else ()
        if used and (not sizes or not all(_is_int(size) and 1 <= size <= 16 for size in sizes)):
            raise config_error("ngram_sizes", self.ngram_sizes, "it holds one or more whole numbers from 1 to 16")
        object.__setattr__(self, "ngram_sizes", tuple(sorted(set(sizes))))

    @property
    def tag(self) -> int:
        """The tag (1 to 2047) that every word id under these settings carries."""
        digest = blake2b(json.dumps(self.to_dict(), sort_keys=True).encode(), digest_size=8).digest()
        return 1 + int.from_bytes(digest, "little") % (_TAGS - 1)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> HashSettings:
        """Read the settings from a mapping that may hold more, such as a tokenizer's configuration."""
        return cls(**{field.name: values[field.name] for field in fields(cls) if field.name in values})

    def to_dict(self) -> dict[str, Any]:
        """Return the settings that have an influence, as plain JSON values."""
        values = asdict(self) | {"ngram_sizes": list(self.ngram_sizes)}
        return {name: value for name, value in values.items() if value not in ([], None)}


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


class Memo(dict[str, _Value]):
    """Remembers what a function gave for a string; forgets everything when it holds `limit` entries."""

    def __init__(self, function: Callable[[str], _Value], limit: int) -> None:
        """Start empty."""
        super().__init__()
        self._function = function
        self._limit = limit

    def __missing__(self, key: str) -> _Value:
        """Compute, and remember, the value of a string seen for the first time."""
        value = self._function(key)
        if len(self) >= self._limit:
            self.clear()
        self[key] = value
        return value


class WordHasher:
    """Hashes normalised words under fixed settings."""

    def __init__(self, settings: HashSettings, pieces_of: Callable[[str], Iterable[str]] | None = None) -> None:
        """Prepare the hash functions.

        Args:
            settings: what decides the hashes.
            pieces_of: gives the pieces of a word under "lsh"; character n-grams by default.
        """
        self.settings = settings
        self._pieces_of = pieces_of or self._ngrams
        self._salt = settings.hash_seed.to_bytes(8, "little")
        self._tag_bits = settings.tag << _DIGEST_BITS
        self._lanes = Memo(self._lanes_of, _MAX_CACHED_PIECES)

    def word_id(self, word: str) -> int:
        """Return the id of a word, from `MIN_WORD_ID` to 2^63 - 1."""
        data = word[:MAX_WORD_CHARS].encode("utf-8", "surrogatepass")
        digest = blake2b(data, digest_size=8, salt=self._salt, person=b"compact-word").digest()
        return self._tag_bits | int.from_bytes(digest, "little") >> (64 - _DIGEST_BITS)

    def signature(self, word: str) -> tuple[int, int]:
        """Return the SimHash of a word: bits 0 to 63 and bits 64 to 127, each as a signed 64-bit integer.

        Every distinct piece votes on every bit. The whole word votes too, once or twice, whichever makes the
        number of votes odd: no bit is ever tied, so ones and zeros stay equally likely.
        """
        word = word[:MAX_WORD_CHARS]
        whole = _WORD_START + word + _WORD_END
        pieces = set(self._pieces_of(word)) - {whole}
        weight = 1 + len(pieces) % 2
        votes = weight * self._lanes_of(whole) + sum(map(self._lanes.__getitem__, pieces))
        majority = (len(pieces) + weight + 1) // 2
        # Lifted by what it lacks to the lane's top bit, a lane shows that bit where it has the majority.
        tops = (votes + _LANE_TOPS - majority * _LANE_ONES) & _LANE_TOPS
        digits = tops.to_bytes(SIGNATURE_BITS * 2, "little")[1::2].translate(_TOP_AS_DIGIT)
        bits = int(digits[::-1], 2)
        return _signed(bits & (1 << 64) - 1), _signed(bits >> 64)

    def _ngrams(self, word: str) -> set[str]:
        """Return the character n-grams of a word, its boundaries marked."""
        marked = _WORD_START + word + _WORD_END
        pieces: set[str] = set()
        for size in self.settings.ngram_sizes:
            text = word if size == 1 else marked
            pieces.update(text[start : start + size] for start in range(len(text) - size + 1))
        return pieces

    def _lanes_of(self, piece: str) -> int:
        """Return the 128 bits of a piece, one in each lane."""
        data = piece.encode("utf-8", "surrogatepass")
        digest = blake2b(data, digest_size=16, salt=self._salt, person=b"compact-piece").digest()
        return int.from_bytes(b"".join(_LANES_OF_BYTE[byte] for byte in digest), "little")


def _signed(value: int) -> int:
    """Read an unsigned 64-bit integer as a signed one."""
    return value - (1 << 64) if value >> 63 else value


def expand_bits(ids: Tensor) -> Tensor:
    """Expand word ids (...) to the 128 bits (..., 128) of a digest, as 0 and 1 in uint8, the lowest bit first.

    The bits are four words of 32, each mixed from both halves of the id. No step leaves the range of non-negative
    64-bit integers and none shifts: overflow is undefined in compiled code, and ONNX cannot shift signed integers.
    """
    ids = ids.to(torch.int64)
    low, high = ids & _MASK_32, ids // (1 << 32)
    words = [_mixed((_mixed((low + step) & _MASK_32) ^ high) + step & _MASK_32) for step in _STEPS]
    return _bits_of(torch.stack(words, dim=-1), 32)


def unpack_signatures(signatures: Tensor) -> Tensor:
    """Unpack signatures (..., 2) in int64 to bits (..., 128), as 0 and 1 in uint8, the lowest bit first."""
    return _bits_of(signatures, 64)


def foreign_ids(ids: Tensor, settings: HashSettings, special_ids: int) -> Tensor:
    """Tell which ids (...) are neither special (below `special_ids`) nor word ids under `settings`."""
    return ((ids < 0) | (ids >= special_ids)) & ((ids >> _DIGEST_BITS) != settings.tag)


def _mixed(words: Tensor) -> Tensor:
    """Mix the bits of 32-bit words, one to one."""
    for _ in range(2):
        words = ((words // (1 << 16) ^ words) * _MULTIPLIER) & _MASK_32
    return words // (1 << 16) ^ words


def _bits_of(words: Tensor, count: int) -> Tensor:
    """Return the lowest `count` bits of words (..., n) side by side (..., n * count)."""
    masks = torch.tensor([_signed(1 << bit) for bit in range(count)], device=words.device)
    return ((words.unsqueeze(-1) & masks) != 0).to(torch.uint8).flatten(-2)
