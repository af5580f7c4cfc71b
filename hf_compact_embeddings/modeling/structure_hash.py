"""HashFormer embeddings: a word's vector comes from the 128 bits of its hash; no row belongs to a word.

| tensor | shape | type | meaning |
|---|---|---|---|
| `generic_vector` | (D,) | float | added to the vector of every ordinary token |
| `special_vectors` | (`special_rows`, D) | float | the rows of special tokens; only with source "text" |
| `codes` | (V, 16) | uint8 | the 128 bits of each token, lowest bit first; only with source "vocabulary" |
| `hashed.table` | (`buckets` or 1,024, D) | float | "emb": a row a bucket; "pool": a row for each value of 10 bits |
| `hashed.chunk_weights` | (13, D) | float | "pool": the weights of the 13 entries of a word, before their softmax |
| `hashed.ones`, `hashed.zeros` | (D, 128) | float | "add": a column for each bit that is 1, and that is 0 |
| `hashed.rows`, `hashed.scales` | (D, 128), (D,) | float | "proj": what bits are correlated with; lengths |
"""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any, ClassVar, NoReturn, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .codes import is_traced
from .errors import CompactConfigError, UnsupportedArchitectureError, config_error
from .extra_inputs import extra_input, take_extra_inputs
from .hash_variants import INITIAL_STD, AddVariant, BucketVariant, HashVariant, PoolVariant, ProjVariant
from .hashing import (
    HASH_VERSION,
    MIN_WORD_ID,
    SIGNATURE_BITS,
    HashSettings,
    expand_bits,
    foreign_ids,
    unpack_signatures,
)
from .options import StructureConfig, StructureLayout, choice, integer, integers, number
from .structure import CompactEmbedding, register_structure

_SIGNATURE_BYTES = SIGNATURE_BITS // 8
_ROWS_PER_CHUNK = 4096


@dataclasses.dataclass(frozen=True, kw_only=True)
class HashConfig(StructureConfig):
    """Options of HashFormer embeddings.

    Attributes:
        variant: "proj", correlations with learned rows; "add", sums of learned columns; "pool", a weighted
            sum of 13 entries of one table; "emb", one row of a table for each bucket of hashes.
        hashing: "md", words alike in spelling are unrelated; "lsh", they have bits alike.
        source: "text": a model from scratch reads the word hashes that `CompactHashTokenizer` makes.
            "vocabulary": it reads the ids of an ordinary tokenizer, and stores the 128 bits of each token.
            None: "vocabulary" where a table is fitted, "text" elsewhere.
        buckets: rows of the table of "emb".
        special_rows: special tokens, `len(tokenizer)`, each with a row of its own; for "text" only.
        ngram_sizes: as the tokenizer's `HashSettings` has it; for "lsh" only.
        hash_seed: as the tokenizer's `HashSettings` has it.
        hash_version: as the tokenizer's `HashSettings` has it.
        pieces: as the tokenizer's `HashSettings` has it; for "lsh" only.
        frequency_power: tokens weigh (count + 1)^power in the fit, where counts are known.
    """

    method: ClassVar[str] = "hash"

    variant: str = choice("proj", "add", "pool", "emb")
    hashing: str = choice("md", "lsh")
    source: str | None = choice(None, "text", "vocabulary")
    buckets: int = integer(50_260, 1)
    special_rows: int = integer(5, 1)
    ngram_sizes: tuple[int, ...] = integers(1, 16, default=(2, 3, 4))
    hash_seed: int = integer(0, 0, (1 << 63) - 1)
    hash_version: int = choice(HASH_VERSION)
    pieces: str | None = None
    frequency_power: float = number(0.75, 0.0, 4.0)

    def __post_init__(self) -> None:
        """Check all fields; the hash settings check themselves."""
        super().__post_init__()
        if self.pieces is not None and not isinstance(self.pieces, str):
            raise config_error("pieces", self.pieces, "it must be the digest of a subword tokenizer, or None")
        object.__setattr__(self, "ngram_sizes", tuple(self.hash_settings.ngram_sizes))

    @property
    def hash_settings(self) -> HashSettings:
        """What the tokenizer's hash settings must be equal to."""
        return HashSettings.from_dict(vars(self))

    @classmethod
    def for_tokenizer(cls, tokenizer: Any, **options: Any) -> Self:
        """Return the configuration of a new model that reads what a `CompactHashTokenizer` writes."""
        given = {"init": "random", "source": "text", "special_rows": len(tokenizer)}
        return cls(**given | tokenizer.hash_settings.to_dict() | options)


@dataclasses.dataclass(frozen=True, kw_only=True)
class HashLayout(StructureLayout):
    """Sizes of HashFormer embeddings.

    Attributes:
        source: what is read: the hashes of words of a text, or ids of a vocabulary whose bits are stored.
        buckets: rows of the table of "emb"; 0 for the others.
        special_rows: rows of special tokens; 0 with a vocabulary.
    """

    source: str = choice("text", "vocabulary")
    buckets: int = integer()
    special_rows: int = integer()


@register_structure
class HashEmbedding(CompactEmbedding):
    """The vector of a word's bits, by `hashed`, plus one vector that all ordinary tokens share.

    With source "text" the ids are word hashes and have no end; `num_embeddings` is the `vocab_size` of the
    model's configuration, which has no meaning here and decides nothing.
    """

    options_class = HashConfig
    layout_class = HashLayout

    options: HashConfig
    layout: HashLayout
    special_vectors: nn.Parameter | None
    codes: Tensor

    def allocate(self) -> None:
        """Allocate what the variant learns, the generic vector, and special rows or stored bits."""
        options, layout = self.options, self.layout
        self.hashed = self._variant()
        self.generic_vector = nn.Parameter(torch.empty(self.embedding_dim))
        special, codes = None, None
        if self.reads_text:
            # The tokenizer's own; some architectures have another one built in.
            self.padding_idx = 0
            special = nn.Parameter(torch.empty(layout.special_rows, self.embedding_dim))
        else:
            codes = torch.empty(layout.coded_rows, _SIGNATURE_BYTES, dtype=torch.uint8)
        self.register_parameter("special_vectors", special)
        self.register_buffer("codes", codes)
        self._hash_settings = options.hash_settings
        self._ids_are_checked = False

    @classmethod
    def layout_for(cls, options: HashConfig, rows: int, width: int, max_bytes: int | None = None) -> HashLayout:
        """Take what the options say; only buckets can adapt to a budget, and only where it is smaller than they."""
        source = options.source or "text"
        buckets = options.buckets if options.variant == "emb" else 0
        row_bytes = width * options.float_bytes
        if buckets and max_bytes is not None:
            tokens = rows * _SIGNATURE_BYTES if source == "vocabulary" else options.special_rows * row_bytes
            buckets = max(1, min(buckets, (max_bytes - tokens - row_bytes) // row_bytes))
        special = options.special_rows if source == "text" else 0
        if special and options.private_rows:
            raise config_error("private_rows", options.private_rows, 'words have no rows: with source "text" it is 0')
        return HashLayout(coded_rows=rows, source=source, buckets=buckets, special_rows=special)

    def check_layout(self) -> None:
        """Raise if there are rows for tokens where there are none."""
        super().check_layout()
        layout, reads_text = self.layout, self.reads_text
        if reads_text and layout.private_rows:
            raise config_error("private_rows", layout.private_rows, "words have no rows")
        if (layout.special_rows > 0) != reads_text:
            raise config_error("special_rows", layout.special_rows, f"the source is {layout.source!r}")
        if (layout.buckets > 0) != (self.options.variant == "emb"):
            raise config_error("buckets", layout.buckets, f"the variant is {self.options.variant!r}")

    def attach(self, model: nn.Module) -> None:
        """Let the model's `forward` take signatures too; refuse models that need more than words from text have."""
        if not self.reads_text:
            return
        self._require_encoder(model)
        if self.options.hashing == "lsh":
            take_extra_inputs(model, ("signatures",))

    def _variant(self) -> HashVariant:
        if self.options.variant == "emb":
            return BucketVariant(self.embedding_dim, self.layout.buckets)
        if self.options.variant == "proj":
            return ProjVariant(self.embedding_dim, scaled=not self.reads_text)
        return (PoolVariant if self.options.variant == "pool" else AddVariant)(self.embedding_dim)

    @property
    def reads_text(self) -> bool:
        """Whether ids are hashes of words, and not numbers of tokens."""
        return self.layout.source == "text"

    # From ids to vectors.

    def bits_of(self, ids: Tensor) -> Tensor:
        """Return the 128 bits (..., 128) of ids (...), as 0 and 1 in uint8; of special tokens, anything."""
        if not self.reads_text:
            return _bits_of_bytes(self.codes.index_select(0, ids.reshape(-1))).view(*ids.shape, SIGNATURE_BITS)
        if self.options.hashing == "md":
            return expand_bits(ids)
        return unpack_signatures(self._signatures_of(ids))

    def _signatures_of(self, ids: Tensor) -> Tensor:
        """Return the signatures (..., 2) that the running call was given beside ids (...)."""
        signatures = extra_input("signatures")
        if signatures is None:
            raise CompactConfigError(
                "`signatures` is missing: this model reads the LSH hashes of words, two int64 numbers a token, that "
                f"CompactHashTokenizer(hashing='lsh') gives beside `input_ids`. Its settings: {self._settings_text()}."
            )
        if signatures.numel() != 2 * ids.numel():
            raise CompactConfigError(
                f"`signatures` is {tuple(signatures.shape)}, but `input_ids` is {tuple(ids.shape)}: there must be two "
                "numbers for each id."
            )
        return signatures.to(device=ids.device, dtype=torch.int64).reshape(*ids.shape, 2)

    def coded_vectors(self, ids: Tensor) -> Tensor:
        """Turn bits into vectors; special tokens have rows of their own."""
        if self.special_vectors is None:
            return self.hashed(self.bits_of(ids)) + self.generic_vector
        self._require_hashes(ids)
        vectors = self.hashed(self.bits_of(ids)) + self.generic_vector
        special = ids < len(self.special_vectors)
        rows = F.embedding(ids.where(special, 0), self.special_vectors)
        return torch.where(special.unsqueeze(-1), rows, vectors)

    def coded_scores(self, hidden: Tensor) -> Tensor:
        """Score what the variant learns, and combine it for each row."""
        hidden, codes = hidden.float(), self.codes
        scores = self.hashed(hidden, len(codes), lambda start, stop: _bits_of_bytes(codes[start:stop]))
        return scores + hidden @ self.generic_vector.float().unsqueeze(-1)

    # Ids that this model cannot read.

    def require_ids(self, ids: Tensor) -> None:
        """Raise if an id has no row; hashes of words all have one."""
        if not self.reads_text:
            super().require_ids(ids)

    def coded_ids(self, ids: Tensor) -> Tensor:
        """Return which coded rows to read; hashes of words are no rows."""
        return ids if self.reads_text else super().coded_ids(ids)

    def _require_hashes(self, ids: Tensor) -> None:
        """Raise if ids are not hashes under this model's settings."""
        if is_traced() or ids.device.type == "meta":
            return
        # Elsewhere the answer must be waited for, so only the first batch is looked at.
        if self._ids_are_checked and ids.device.type != "cpu":
            return
        foreign = foreign_ids(ids, self._hash_settings, self.layout.special_rows)
        if bool(foreign.any()):
            raise CompactConfigError(self._foreign_text(int(ids[foreign][0])))
        self._ids_are_checked = True

    def _foreign_text(self, foreign: int) -> str:
        expected = f"This model reads the hashes that CompactHashTokenizer makes with {self._settings_text()}"
        tag = foreign // MIN_WORD_ID
        if tag <= 0:
            return (
                f"`input_ids` holds {foreign}, which is neither one of the {self.layout.special_rows} special tokens "
                f"nor the hash of a word. {expected}; the ids of an ordinary tokenizer mean nothing to it."
            )
        guesses = [HashSettings(hashing=hashing, hash_seed=seed) for hashing in ("md", "lsh") for seed in range(64)]
        found = next((guess.to_dict() for guess in guesses if guess.tag == tag), f"other settings (tag {tag})")
        return f"`input_ids` holds {foreign}, a hash made with {found}. {expected} (tag {self._hash_settings.tag})."

    def _settings_text(self) -> str:
        return str(self._hash_settings.to_dict())

    def _require_encoder(self, model: Any) -> None:
        """Refuse models that need more of a table than words from text have."""
        name, forward = type(model).__name__, inspect.signature(type(model).forward)
        reason = None
        if model.get_output_embeddings() is not None:
            reason = "has a head that scores a vocabulary"
        elif "decoder_input_ids" in forward.parameters:
            reason = "reads a second sequence through the same table"
        if reason is not None:
            raise UnsupportedArchitectureError(
                f"{name} {reason}, but a model that reads hashes of words has no vocabulary: looked for an encoder "
                "without such a head. Pretrain it as a token classifier that tells replaced words."
            )
        padding = model.config.get_text_config().pad_token_id
        if padding != 0:
            raise config_error("pad_token_id", padding, "CompactHashTokenizer pads with 0: set it in the configuration")

    # What has no meaning without a vocabulary.

    def _refuse(self, what: str) -> NoReturn:
        raise CompactConfigError(
            f"{what}: this structure reads hashes of any words, so there is no vocabulary and no table. "
            'Only `source="vocabulary"` has both.'
        )

    def project(self, hidden: Tensor) -> Tensor:
        """Return scores (..., V) of hidden states (..., D); raises where there is no vocabulary."""
        if self.reads_text:
            self._refuse("It cannot score hidden states against all tokens")
        return super().project(hidden)

    def dense_chunks(self, rows: int = _ROWS_PER_CHUNK) -> Any:
        """Decode the table in order; raises where there is no vocabulary."""
        if self.reads_text:
            self._refuse("It has no dense table")
        return super().dense_chunks(rows)

    def resized(self, num_embeddings: int, new_rows: Tensor | None = None) -> Self:
        """Grow or shrink; raises where there is no vocabulary."""
        if self.reads_text:
            self._refuse(
                f"It cannot be resized to {num_embeddings:,} rows (for more special tokens, start with more "
                "`special_rows`)"
            )
        return super().resized(num_embeddings, new_rows)

    # Values.

    @torch.no_grad()
    def set_bits(self, start: int, bits: Tensor) -> None:
        """Store the bits (n, 128) of the tokens from `start` on."""
        weights = 1 << torch.arange(8, device=bits.device)
        packed = (bits.unflatten(-1, (_SIGNATURE_BYTES, 8)) * weights).sum(-1)
        self.codes[start : start + len(bits)] = packed.to(self.codes)

    @torch.no_grad()
    def hash_ids(self) -> None:
        """Store hashes of the tokens' ids, where their strings are not known."""
        for start in range(0, self.layout.coded_rows, _ROWS_PER_CHUNK):
            ids = torch.arange(start, min(start + _ROWS_PER_CHUNK, self.layout.coded_rows), device=self.device)
            self.set_bits(start, expand_bits(ids))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw everything that is learned; stored bits are hashes of the ids."""
        self.hashed.reset_parameters()
        for parameter in (self.generic_vector, self.special_vectors):
            if parameter is not None:
                nn.init.trunc_normal_(parameter, std=INITIAL_STD, a=-2 * INITIAL_STD, b=2 * INITIAL_STD)
        if not self.reads_text:
            self.hash_ids()

    def keep_rows(self, count: int) -> None:
        """Drop the bits of the last tokens."""
        if not self.reads_text:
            self.codes = self.codes[:count].clone()


def _bits_of_bytes(codes: Tensor) -> Tensor:
    """Return the bits (n, 128) of packed rows (n, 16), the lowest bit first."""
    shifts = torch.arange(8, device=codes.device, dtype=torch.uint8)
    return ((codes.unsqueeze(-1) >> shifts) & 1).flatten(-2)
