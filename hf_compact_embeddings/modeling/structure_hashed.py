"""HashFormer embeddings: a word's vector comes from the 128 bits of its hash; no row belongs to a word."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NoReturn, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from .codes import is_traced
from .configuration import StructureConfig
from .errors import CompactConfigError, UnsupportedArchitectureError, config_error
from .extra_inputs import extra_input
from .hash_variants import (
    INITIAL_STD,
    AddVariant,
    BucketVariant,
    HashVariant,
    PoolVariant,
    ProjVariant,
)
from .hashing import (
    HASH_VERSION,
    MIN_WORD_ID,
    SIGNATURE_BITS,
    HashSettings,
    expand_bits,
    foreign_ids,
    unpack_signatures,
)
from .structure import CompactEmbedding, register_structure

_SIGNATURE_BYTES = SIGNATURE_BITS // 8
_ROWS_PER_CHUNK = 4096


@dataclasses.dataclass(frozen=True, kw_only=True)
class HashConfig(StructureConfig):
    """Configuration of HashFormer embeddings.

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
    fits_token_strings: ClassVar[bool] = True

    variant: str = "proj"
    hashing: str = "md"
    source: str | None = None
    buckets: int = 50_260
    special_rows: int = 5
    ngram_sizes: Sequence[int] = (2, 3, 4)
    hash_seed: int = 0
    hash_version: int = HASH_VERSION
    pieces: str | None = None
    frequency_power: float = 0.75

    def __post_init__(self) -> None:
        """Check the fields; the hash settings check themselves."""
        super().__post_init__()
        self.require_choice("variant", ("emb", "pool", "add", "proj"))
        self.require_choice("source", (None, "text", "vocabulary"))
        self.require_integer("buckets", 1, 1 << 31)
        self.require_integer("special_rows", 1, 1 << 31)
        self.require_number("frequency_power", 0.0, 4.0)
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

    def resolved(self, num_embeddings: int, embedding_dim: int) -> Self:
        """Fill in the source of the hashes."""
        config = super().resolved(num_embeddings, embedding_dim)
        if config.source is None:
            config = dataclasses.replace(config, source="text")
        if config.source == "text" and config.private_rows:
            raise config_error("private_rows", config.private_rows, 'words have no rows: with source "text" it is 0')
        return config


@register_structure(HashConfig)
class HashEmbedding(CompactEmbedding):
    """The vector of a word's bits, by `hashed`, plus one vector that all ordinary tokens share.

    With source "text" the ids are word hashes and have no end; `num_embeddings` is the `vocab_size` of the
    model's configuration, which has no meaning here and decides nothing.
    """

    config: HashConfig
    special_vectors: nn.Parameter | None
    codes: Tensor | None

    def __init__(
        self,
        config: HashConfig,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        scale: float = 1.0,
    ) -> None:
        """Allocate what the variant learns, the generic vector, and special rows or stored bits."""
        super().__init__(config, num_embeddings, embedding_dim, padding_idx, scale)
        self.hashed = self._variant()
        self.generic_vector = nn.Parameter(torch.empty(embedding_dim))
        special, codes = None, None
        if self.reads_text:
            # The tokenizer's own; some architectures have another one built in.
            self.padding_idx = 0
            special = nn.Parameter(torch.empty(self.config.special_rows, embedding_dim))
        else:
            codes = torch.empty(self.coded_rows, _SIGNATURE_BYTES, dtype=torch.uint8)
        self.register_parameter("special_vectors", special)
        self.register_buffer("codes", codes)
        self._hash_settings = self.config.hash_settings
        self._ids_are_checked = False

    def _variant(self) -> HashVariant:
        if self.config.variant == "emb":
            return BucketVariant(self.embedding_dim, self.config.buckets)
        if self.config.variant == "proj":
            return ProjVariant(self.embedding_dim, scaled=not self.reads_text)
        return (PoolVariant if self.config.variant == "pool" else AddVariant)(self.embedding_dim)

    @property
    def reads_text(self) -> bool:
        """Whether ids are hashes of words, and not numbers of tokens."""
        return self.config.source == "text"

    @property
    def extra_inputs(self) -> tuple[str, ...]:
        """The signatures, where they travel beside the ids."""
        return ("signatures",) if self.reads_text and self.config.hashing == "lsh" else ()

    # From ids to vectors.

    def bits_of(self, ids: Tensor) -> Tensor:
        """Return the 128 bits (..., 128) of ids (...), as 0 and 1 in uint8; of special tokens, anything."""
        if self.codes is not None:
            return _bits_of_bytes(self.codes.index_select(0, ids.reshape(-1))).view(*ids.shape, SIGNATURE_BITS)
        if self.config.hashing == "md":
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
        assert self.codes is not None
        hidden, codes = hidden.float(), self.codes
        scores = self.hashed(hidden, len(codes), lambda start, stop: _bits_of_bytes(codes[start:stop]))
        return scores + hidden @ self.generic_vector.float().unsqueeze(-1)

    # Ids that this model cannot read.

    def require_ids(self, ids: Tensor) -> None:
        """Raise if an id has no row; hashes of words all have one."""
        if not self.reads_text:
            super().require_ids(ids)

    def _require_hashes(self, ids: Tensor) -> None:
        """Raise if ids are not hashes under this model's settings."""
        if is_traced() or ids.device.type == "meta":
            return
        # Elsewhere the answer must be waited for, so only the first batch is looked at.
        if self._ids_are_checked and ids.device.type != "cpu":
            return
        foreign = foreign_ids(ids, self._hash_settings, self.config.special_rows)
        if bool(foreign.any()):
            raise CompactConfigError(self._foreign_text(int(ids[foreign][0])))
        self._ids_are_checked = True

    def _foreign_text(self, foreign: int) -> str:
        expected = f"This model reads the hashes that CompactHashTokenizer makes with {self._settings_text()}"
        tag = foreign // MIN_WORD_ID
        if tag <= 0:
            return (
                f"`input_ids` holds {foreign}, which is neither one of the {self.config.special_rows} special tokens "
                f"nor the hash of a word. {expected}; the ids of an ordinary tokenizer mean nothing to it."
            )
        guesses = [HashSettings(hashing=hashing, hash_seed=seed) for hashing in ("md", "lsh") for seed in range(64)]
        found = next((guess.to_dict() for guess in guesses if guess.tag == tag), f"other settings (tag {tag})")
        return f"`input_ids` holds {foreign}, a hash made with {found}. {expected} (tag {self._hash_settings.tag})."

    def _settings_text(self) -> str:
        return str(self._hash_settings.to_dict())

    def check_tokenizer(self, stored: Callable[[], Mapping[str, Any]]) -> None:
        """Refuse a saved tokenizer with other hash settings."""
        if not self.reads_text:
            return
        config = stored()
        if "hash_version" in config and HashSettings.from_dict(config) != self._hash_settings:
            raise CompactConfigError(
                f"The tokenizer hashes words with {HashSettings.from_dict(config).to_dict()}, but the model beside it "
                f"was built for {self._settings_text()}: the hashes of one mean nothing to the other."
            )

    def require_fit(self, model: PreTrainedModel) -> None:
        """Refuse models that need more of a table than words from text have."""
        if not self.reads_text:
            return
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
        assert self.codes is not None
        weights = 1 << torch.arange(8, device=bits.device)
        packed = (bits.unflatten(-1, (_SIGNATURE_BYTES, 8)) * weights).sum(-1)
        self.codes[start : start + len(bits)] = packed.to(self.codes)

    @torch.no_grad()
    def hash_ids(self) -> None:
        """Store hashes of the tokens' ids, where their strings are not known."""
        for start in range(0, self.coded_rows, _ROWS_PER_CHUNK):
            ids = torch.arange(start, min(start + _ROWS_PER_CHUNK, self.coded_rows), device=self.device)
            self.set_bits(start, expand_bits(ids))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw everything that is learned; stored bits are hashes of the ids."""
        self.hashed.reset_parameters()
        for parameter in (self.generic_vector, self.special_vectors):
            if parameter is not None:
                nn.init.trunc_normal_(parameter, std=INITIAL_STD, a=-2 * INITIAL_STD, b=2 * INITIAL_STD)
        if self.codes is not None:
            self.hash_ids()

    def keep_rows(self, count: int) -> None:
        """Drop the bits of the last tokens."""
        if self.codes is not None:
            self.codes = self.codes[:count].clone()

    def collisions(self) -> int:
        """Return how many tokens have the vector of an earlier one; unknown, so 0, without a vocabulary."""
        if self.codes is None:
            return 0
        entries = torch.cat(
            [self.hashed.entries_of(_bits_of_bytes(chunk)) for chunk in self.codes.split(_ROWS_PER_CHUNK)]
        )
        return self.coded_rows - len(torch.unique(entries, dim=0))


def _bits_of_bytes(codes: Tensor) -> Tensor:
    """Return the bits (n, 128) of packed rows (n, 16), the lowest bit first."""
    shifts = torch.arange(8, device=codes.device, dtype=torch.uint8)
    return ((codes.unsqueeze(-1) >> shifts) & 1).flatten(-2)
