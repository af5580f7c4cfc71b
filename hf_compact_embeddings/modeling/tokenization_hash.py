"""The tokenizer without a vocabulary: every word of any text is its own token, and its id is its hash."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import AddedToken, BatchEncoding, PreTrainedTokenizer, PreTrainedTokenizerBase
from transformers.tokenization_utils_base import TruncationStrategy
from transformers.utils import PaddingStrategy

from .code_files import shipped_files, write_files
from .errors import config_error
from .hash_encoding import NO_SIGNATURE, HashEncoding, Words, samples_of, windows
from .hash_words import spelling, word_spans
from .hashing import HASH_VERSION, MAX_WORD_CHARS, HashSettings, Memo, WordHasher
from .subword_pieces import PIECES_FILE, SubwordPieces, digest_of, serialized_pieces
from .tokenizer_internals import set_built_in_tokens, warn_of_length

_MAX_CACHED_WORDS = 1 << 18
_SPECIAL_TOKENS = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
_ATTRIBUTES = {"token_type_ids": "type_ids", "offset_mapping": "offsets"}
_UNKNOWN_WORD = re.compile(r"<w:(-?[0-9a-f]+)>")


class CompactHashTokenizer(PreTrainedTokenizer):
    """Turns text into hashes of its words; needs no vocabulary, no corpus and no file.

    `input_ids` holds one integer below 2^63 for each word (`hash_words` says what a word is) and small
    integers for special tokens: `[PAD]` 0, `[UNK]` 1 (never produced from text), `[CLS]` 2, `[SEP]` 3,
    `[MASK]` 4; tokens that are added count on from 5. With `hashing="lsh"` the 128 bits of each word travel
    beside the ids as `signatures`, two signed 64-bit integers a token, zero for special tokens and padding.
    Characters of a word past the 128th do not count.

    Offsets, word ids and overflowing rows are those of a fast tokenizer (`is_fast` is true), but there is no
    `backend_tokenizer`. A hash has no way back: decoding knows the words that this instance has encoded
    (the last 262,144 or fewer), and writes `<w:…>` with the id in hexadecimal for any other.
    """

    vocab_files_names = {"pieces_file": PIECES_FILE}
    model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    _auto_class = "AutoTokenizer"

    def __init__(
        self,
        hashing: str = "md",
        ngram_sizes: Sequence[int] = (2, 3, 4),
        hash_seed: int = 0,
        hash_version: int = HASH_VERSION,
        subword_tokenizer: PreTrainedTokenizerBase | str | Path | None = None,
        pieces_file: str | None = None,
        pieces: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Build a tokenizer; nothing needs to be given.

        Args:
            hashing: "md" or "lsh", see `HashSettings`.
            ngram_sizes: lengths of the character n-grams that are a word's pieces under "lsh".
            hash_seed: draws another family of hashes.
            hash_version: the revision of the hash functions.
            subword_tokenizer: a fast tokenizer, or the path of its `tokenizer.json`; under "lsh" the pieces
                of a word are then its subwords over all two-way splits. It is saved beside the configuration.
            pieces_file: where loading has found the saved subword tokenizer.
            pieces: the digest that its file must have.
            **kwargs: what every tokenizer takes, such as `model_max_length` and `padding_side`.
        """
        self._pieces_json = serialized_pieces(subword_tokenizer, pieces_file, pieces)
        self.hash_settings = HashSettings(
            hashing=hashing,
            ngram_sizes=ngram_sizes,
            hash_seed=hash_seed,
            hash_version=hash_version,
            pieces=None if self._pieces_json is None else digest_of(self._pieces_json),
        )
        self._forget_words()
        names = {name: kwargs.pop(name, None) or default for name, default in _SPECIAL_TOKENS.items()}
        tokens = [AddedToken(str(token), special=True, normalized=False) for token in names.values()]
        set_built_in_tokens(self, dict(enumerate(tokens)))
        for fact_of_the_last_load in ("is_local", "local_files_only", "special_tokens_pattern"):
            kwargs.pop(fact_of_the_last_load, None)
        super().__init__(**names, **self.hash_settings.to_dict(), special_tokens_pattern="cls_sep", **kwargs)
        inputs = [name for name in self.model_input_names if name != "signatures"]
        self.model_input_names = [*inputs, "signatures"] if self._signed else inputs

    @property
    def _signed(self) -> bool:
        return self.hash_settings.hashing == "lsh"

    @property
    def is_fast(self) -> bool:
        """True: offsets and word ids come with every encoding."""
        return True

    @property
    def vocab_size(self) -> int:
        """The number of special tokens that are built in: words have no vocabulary."""
        return len(_SPECIAL_TOKENS)

    def get_vocab(self) -> dict[str, int]:
        """Return the special and the added tokens; `len(tokenizer)` counts them."""
        return self.added_tokens_encoder

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str, ...]:
        """Save the subword tokenizer where one gives the pieces, and the code: Transformers has copied it whole."""
        write_files(save_directory, shipped_files(__file__))
        if self._pieces_json is None:
            return ()
        path = Path(save_directory) / (f"{filename_prefix}-" * bool(filename_prefix) + PIECES_FILE)
        path.write_bytes(self._pieces_json.encode())
        return (str(path),)

    # Ids and words

    def _forget_words(self) -> None:
        pieces_of = None if self._pieces_json is None else SubwordPieces(self._pieces_json)
        hasher = WordHasher(self.hash_settings, pieces_of)
        spellings: dict[int, str] = {}

        def id_of(surface: str) -> int:
            word = spelling(surface)
            word_id = hasher.word_id(word)
            if len(spellings) >= _MAX_CACHED_WORDS:
                spellings.clear()
            spellings[word_id] = word
            return word_id

        # In a dictionary of this name, because `datasets` leaves that one out of the fingerprint of a tokenizer.
        self.cache: dict[str, Any] = {
            "ids": Memo(id_of, _MAX_CACHED_WORDS),
            "signatures": Memo(lambda surface: hasher.signature(spelling(surface)), _MAX_CACHED_WORDS),
            "spellings": spellings,
        }

    def _known(self, what: str) -> Any:
        # `datasets` before 4.7 empties the dictionary of the tokenizer that it takes a fingerprint of.
        if what not in self.cache:
            self._forget_words()
        return self.cache[what]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "cache"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget_words()

    def _convert_token_to_id(self, token: str) -> int:
        unknown = _UNKNOWN_WORD.fullmatch(token)
        if unknown:
            return int(unknown[1], 16)
        surface = token[:MAX_WORD_CHARS]
        if not spelling(surface):
            return self.added_tokens_encoder[self.unk_token]
        word_id: int = self._known("ids")[surface]
        return word_id

    def _convert_id_to_token(self, index: int) -> str:
        word: str = self._known("spellings").get(index, f"<w:{index:x}>")
        return word

    # From text to rows

    def _update_trie(self, unique_no_split_tokens: list[str] | None = None) -> None:
        alternatives = [
            rf"(?<!\w){re.escape(token.content)}(?!\w)" if token.single_word else re.escape(token.content)
            for token in sorted(self.added_tokens_decoder.values(), key=lambda token: -len(token.content))
        ]
        self._added_pattern = re.compile("|".join(alternatives))

    def _words_of(self, text: str, split_special_tokens: bool) -> Words:
        """Split one text; tokens that were added stand whole, unless they are to be split."""
        if not isinstance(text, str):
            raise config_error("text", type(text).__name__, "it is a string, a pair of them, or a list of these")
        if split_special_tokens or not self._added_pattern.search(text):
            return self._hashed(text, 0, len(text))
        words, added = Words(), self.added_tokens_encoder
        end = 0
        for match in self._added_pattern.finditer(text):
            words.extend(self._hashed(text, end, match.start()))
            end = match.end()
            blank = [NO_SIGNATURE] if self._signed else []
            words.extend(Words([added[match[0]]], [match.span()], [match[0]], blank))
        words.extend(self._hashed(text, end, len(text)))
        words.word_ids = range(len(words.ids))
        return words

    def _hashed(self, text: str, start: int, end: int) -> Words:
        """Return the words of text[start:end]."""
        offsets = word_spans(text[start:end])
        if start:
            offsets = [(start + first, start + last) for first, last in offsets]
        surfaces = [
            text[first:last] if last - first <= MAX_WORD_CHARS else text[first : first + MAX_WORD_CHARS]
            for first, last in offsets
        ]
        ids = list(map(self._known("ids").__getitem__, surfaces))
        signatures = list(map(self._known("signatures").__getitem__, surfaces)) if self._signed else []
        return Words(ids, offsets, surfaces, signatures, range(len(ids)))

    def _words_of_list(self, given: Sequence[str], split_special_tokens: bool) -> Words:
        """Split each given word further; word ids count the given words, offsets begin anew in each."""
        words = Words()
        word_ids: list[int] = []
        for index, word in enumerate(given):
            parts = self._words_of(word, split_special_tokens)
            words.extend(parts)
            word_ids += [index] * len(parts.ids)
        words.word_ids = word_ids
        return words

    def tokenize(
        self, text: str, pair: str | None = None, add_special_tokens: bool = False, **kwargs: Any
    ) -> list[str]:
        """Return the words of a text as they are hashed."""
        return self(text, pair, add_special_tokens=add_special_tokens, **kwargs).tokens()

    def _encode_plus(
        self,
        text: Any,
        text_pair: Any = None,
        add_special_tokens: bool = True,
        padding_strategy: PaddingStrategy = PaddingStrategy.DO_NOT_PAD,
        truncation_strategy: TruncationStrategy = TruncationStrategy.DO_NOT_TRUNCATE,
        max_length: int | None = None,
        stride: int = 0,
        is_split_into_words: bool = False,
        return_tensors: str | None = None,
        return_overflowing_tokens: bool = False,
        verbose: bool = True,
        split_special_tokens: bool | None = None,
        **kwargs: Any,
    ) -> BatchEncoding:
        samples, batched = samples_of(text, text_pair, is_split_into_words)
        split_special = self.split_special_tokens if split_special_tokens is None else split_special_tokens
        split = self._words_of_list if is_split_into_words else self._words_of
        rows: list[HashEncoding] = []
        sample_of_row: list[int] = []
        for index, (first, second) in enumerate(samples):
            sequences = [split(first, split_special)]
            if second is not None:
                sequences.append(split(second, split_special))
            room = None
            if truncation_strategy != TruncationStrategy.DO_NOT_TRUNCATE and max_length is not None:
                added = self.num_special_tokens_to_add(len(sequences) == 2) if add_special_tokens else 0
                if max_length < added:
                    raise config_error("max_length", max_length, f"{added} special tokens are added")
                room = max_length - added
            step = stride if return_overflowing_tokens else None
            strategy = TruncationStrategy(truncation_strategy).value
            for window in windows(sequences, room, strategy, step, self.truncation_side):
                rows.append(self._row(window, add_special_tokens))
                sample_of_row.append(index)
                warn_of_length(self, rows[-1].ids, max_length, verbose)
        self._pad_rows(rows, padding_strategy, max_length, **kwargs)
        data = self._columns(rows, **kwargs)
        if return_overflowing_tokens:
            data["overflow_to_sample_mapping"] = sample_of_row
        elif not batched and return_tensors is None:
            data = {name: value[0] if isinstance(value[0], list) else value for name, value in data.items()}
        batch = BatchEncoding(data, rows, tensor_type=return_tensors)
        if self._signed and return_tensors is not None and batch["signatures"].ndim == 2:
            # Without a single token there is no nesting that would show the last axis.
            batch["signatures"] = batch["signatures"].reshape(len(rows), 0, 2)
        return batch

    def _row(self, sequences: Sequence[Words], add_special_tokens: bool) -> HashEncoding:
        """Join one or two sequences as [CLS] a [SEP] (b [SEP])."""
        row = HashEncoding(self._signed)
        if add_special_tokens:
            row.add_special(self.cls_token_id, self.cls_token)
        for words in sequences:
            row.add_words(words)
            if add_special_tokens:
                row.add_special(self.sep_token_id, self.sep_token)
        return row

    def _pad_rows(
        self,
        rows: list[HashEncoding],
        strategy: PaddingStrategy,
        max_length: int | None,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        **_: Any,
    ) -> None:
        if strategy == PaddingStrategy.DO_NOT_PAD or not rows:
            return
        length = max(map(len, rows))
        if strategy == PaddingStrategy.MAX_LENGTH and max_length is not None:
            length = max_length
        if pad_to_multiple_of:
            length = -(-length // pad_to_multiple_of) * pad_to_multiple_of
        for row in rows:
            if len(row) < length:
                side = padding_side or self.padding_side
                row.pad(length, side, self.pad_token_id, self.pad_token, self.pad_token_type_id)

    def _columns(
        self,
        rows: list[HashEncoding],
        return_token_type_ids: bool | None = None,
        return_attention_mask: bool | None = None,
        return_special_tokens_mask: bool = False,
        return_offsets_mapping: bool = False,
        return_length: bool = False,
        **_: Any,
    ) -> dict[str, list[Any]]:
        """Return what the model takes, and what was asked for beside it, each as a list over the rows."""
        inputs = self.model_input_names
        asked = {"token_type_ids": return_token_type_ids, "attention_mask": return_attention_mask}
        wanted = [name for name, answer in asked.items() if (name in inputs if answer is None else answer)]
        wanted += ["special_tokens_mask"] * return_special_tokens_mask
        wanted += ["offset_mapping"] * return_offsets_mapping + ["signatures"] * ("signatures" in inputs)
        columns: dict[str, list[Any]] = {"input_ids": [row.ids for row in rows]}
        columns |= {name: [getattr(row, _ATTRIBUTES.get(name, name)) for row in rows] for name in wanted}
        if return_length:
            columns["length"] = [len(row) for row in rows]
        return columns

    def _pad(self, encoded_inputs: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Pad one row, its signatures too."""
        padded: dict[str, Any] = super()._pad(encoded_inputs, *args, **kwargs)
        missing = len(padded["input_ids"]) - len(padded.get("signatures", padded["input_ids"]))
        if missing:
            side = kwargs.get("padding_side") or self.padding_side
            padding = [list(NO_SIGNATURE)] * missing
            signatures = list(padded["signatures"])
            padded["signatures"] = padding + signatures if side == "left" else signatures + padding
        return padded
