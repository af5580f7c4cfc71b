"""Subwords as the pieces of a word: what a signature votes on where a subword tokenizer is given."""

from __future__ import annotations

from hashlib import blake2b
from pathlib import Path
from tempfile import TemporaryDirectory

from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from .errors import CheckpointError, config_error

PIECES_FILE = "subword_pieces.json"


class SubwordPieces:
    """Gives the pieces of a word: the subwords of both parts, over all ways to split it in two."""

    def __init__(self, serialized: str) -> None:
        """Read a fast tokenizer from the text of its `tokenizer.json`."""
        with TemporaryDirectory() as folder:
            path = Path(folder, "tokenizer.json")
            path.write_bytes(serialized.encode())
            self._backend = PreTrainedTokenizerFast(tokenizer_file=str(path)).backend_tokenizer
        self._backend.no_truncation()
        self._backend.no_padding()

    def __call__(self, word: str) -> set[str]:
        """Return the distinct pieces of a word."""
        parts = {word}
        for end in range(1, len(word)):
            parts |= {word[:end], word[end:]}
        # One by one: a batch would start threads, and then warn in every process forked later.
        encodings = (self._backend.encode(part, add_special_tokens=False) for part in parts)
        return {piece for encoding in encodings for piece in encoding.tokens}


def serialized_pieces(
    given: PreTrainedTokenizerBase | str | Path | None, saved_file: str | None, saved_digest: str | None
) -> str | None:
    """Return the subword tokenizer, serialized: the one given, or else the one saved, or none.

    Args:
        given: a fast tokenizer, or the path of a `tokenizer.json`.
        saved_file: the path of the file that was saved, where there is one.
        saved_digest: the digest that the configuration names, where it names one.
    """
    if isinstance(given, PreTrainedTokenizerFast):
        return str(given.backend_tokenizer.to_str())
    if isinstance(given, (str, Path)):
        return Path(given).read_bytes().decode()
    if given is not None:
        raise config_error("subword_tokenizer", given, "it is a fast tokenizer or a path to `tokenizer.json`")
    if saved_digest is None:
        return None
    if saved_file is None:
        raise CheckpointError(f"The tokenizer takes its pieces from `{PIECES_FILE}`, which is missing.")
    serialized = Path(saved_file).read_bytes().decode()
    found = digest_of(serialized)
    if found != saved_digest:
        raise CheckpointError(f"`{PIECES_FILE}` has digest {found}, its configuration says {saved_digest}.")
    return serialized


def digest_of(serialized: str) -> str:
    """Return the digest by which hash settings tell subword tokenizers apart."""
    return blake2b(serialized.encode(), digest_size=16).hexdigest()
