"""Factorized embeddings: a short code for each row, and one decoder for all of them."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .codes import draw_codes_
from .configuration import STORAGE_DTYPES, StructureConfig
from .errors import CompactConfigError, config_error
from .structure import CompactEmbedding, register_structure

_INITIAL_RANGE = 0.02
_INT8_ZERO = 128
_DEFAULT_RATIO = 10.0
_ROWS_PER_CHUNK = 8192


@dataclasses.dataclass(frozen=True, kw_only=True)
class FactorizedConfig(StructureConfig):
    """Configuration of factorized embeddings. One of `rank`, `ratio` and `max_bytes` gives the size; none: ratio 10.

    Attributes:
        rank: k, the width of a code; below the width of the table.
        ratio: choose the highest rank with V·D / (V·k + k·D) of at least this: the paper's count, of floats.
        max_bytes: choose the highest rank whose stored bytes are at most this (private rows not counted).
        fit: "autoencoder" keeps the directions of the rows; "svd" has the least squared error.
        preset: of the autoencoder: "default", from the closed form on; "paper", the recipe of 2021.
        cosine_loss: coefficient of 1 - cos in the autoencoder's loss; None: the preset's own.
        power_loss: coefficient of the mean |ê - e|^exponent; None: the preset's own.
        rmse_loss: coefficient of the root mean square error; None: the preset's own.
        algorithm: of the closed form: "gram" (moments), or "exact" (triangular factors, slower).
        hidden_width: units of a non-linear (ELU) part of the decoder; 0: none. For the autoencoder.
        restore_norm: store a float16 scale a row that gives each decoded row its original norm.
        int8_codes: store codes in 8 bits, with a float16 scale a row; they are then not trained.
        frequency_power: tokens weigh (count + 1)^power in the fit, where counts are known.
        metric: what an error costs: "plain", its squared length; "sensitivity", how far it moves what the model gives
            over `texts`: the scores of a head that is tied to the table, or else the states. With such a head it keeps
            the model's predictions, at the cost of what is later fine-tuned without the head.
        trainable: what later training changes: "all", "decoder" or "none".
    """

    method: ClassVar[str] = "factorized"

    rank: int | None = None
    ratio: float | None = None
    max_bytes: int | None = None
    fit: str = "autoencoder"
    preset: str = "default"
    cosine_loss: float | None = None
    power_loss: float | None = None
    rmse_loss: float | None = None
    algorithm: str = "gram"
    hidden_width: int = 0
    restore_norm: bool = False
    int8_codes: bool = False
    frequency_power: float = 0.75
    metric: str = "plain"
    trainable: str = "all"

    def __post_init__(self) -> None:
        """Check the fields."""
        super().__post_init__()
        if [self.rank, self.ratio, self.max_bytes].count(None) < 2:
            raise CompactConfigError(
                f"`rank` is {self.rank!r}, `ratio` {self.ratio!r} and `max_bytes` {self.max_bytes!r}, "
                "but only one of them can be given."
            )
        if self.rank is not None:
            self.require_integer("rank", 1)
        if self.ratio is not None:
            self.require_number("ratio", 1e-3)
        if self.max_bytes is not None:
            self.require_integer("max_bytes", 1)
        self.require_choice("fit", ("autoencoder", "svd"))
        self.require_choice("preset", ("default", "paper"))
        for name in ("cosine_loss", "power_loss", "rmse_loss"):
            if getattr(self, name) is not None:
                self.require_number(name, 0.0)
        self.require_choice("algorithm", ("gram", "exact"))
        self.require_integer("hidden_width", 0)
        self.require_choice("restore_norm", (True, False))
        self.require_choice("int8_codes", (True, False))
        self.require_number("frequency_power", 0.0, 4.0)
        self.require_choice("metric", ("plain", "sensitivity"))
        self.require_choice("trainable", ("all", "decoder", "none"))
        if self.hidden_width and (self.fit, self.preset) != ("autoencoder", "default"):
            given = (self.fit, self.preset)
            raise config_error("hidden_width", self.hidden_width, f"fit and preset {given} have a linear decoder")

    def resolved(self, num_embeddings: int, embedding_dim: int) -> Self:
        """Turn a ratio or a number of bytes into a rank, and check it against the width."""
        config = super().resolved(num_embeddings, embedding_dim)
        assert config.coded_rows is not None
        if self.max_bytes is not None:
            rank = self._rank_for_bytes(config.coded_rows, embedding_dim, self.max_bytes)
        elif self.rank is None:
            rank = self._rank_for_ratio(config.coded_rows, embedding_dim, self.ratio or _DEFAULT_RATIO)
        else:
            rank = self.rank
        config = dataclasses.replace(config, rank=rank, ratio=None, max_bytes=None)
        if rank >= embedding_dim:
            raise config_error("rank", rank, f"it must be below the table's width of {embedding_dim:,}")
        return config

    @classmethod
    def candidates(cls, num_embeddings: int, embedding_dim: int, max_bytes: int) -> list[Self]:
        """Return the highest rank that fits, in float16 and in 8 bits; by SVD, whose error is the least."""
        found = []
        for int8_codes in (False, True):
            config = cls(fit="svd", int8_codes=int8_codes, max_bytes=max_bytes)
            if config.stored_bytes(num_embeddings, embedding_dim, 1) <= max_bytes:
                if config.stored_bytes(num_embeddings, embedding_dim, embedding_dim) <= max_bytes:
                    config = dataclasses.replace(config, rank=embedding_dim - 1, max_bytes=None)
                found.append(config)
        return found if embedding_dim > 1 else []

    def head_cost(self, num_embeddings: int, embedding_dim: int) -> float:
        """Take k numbers of each row, after one small product."""
        config = self.resolved(num_embeddings, embedding_dim)
        assert config.rank is not None
        return float((config.rank + config.hidden_width) * (num_embeddings + embedding_dim))

    def stored_bytes(self, rows: int, width: int, rank: int) -> int:
        """Return the bytes that factors of a rank take for a table (rows, width), without private rows."""
        size = STORAGE_DTYPES[self.storage_dtype].itemsize
        row_bytes = (rank + 2 if self.int8_codes else rank * size) + (2 if self.restore_norm else 0)
        return rows * row_bytes + (rank * width + width + self.hidden_width * (rank + 1 + width)) * size

    @staticmethod
    def _rank_for_ratio(rows: int, width: int, ratio: float) -> int:
        highest = rows * width / (rows + width)
        # A hair of tolerance, so that the exact ratio of a rank gives that rank.
        rank = math.floor(highest / ratio * (1 + 1e-12))
        if not 1 <= rank < width:
            lowest = highest / max(1, width - 1)
            allowed = f"for {rows:,} x {width:,} it must be {lowest:.4g} (rank {width - 1:,}) to {highest:.4g} (rank 1)"
            raise config_error("ratio", ratio, allowed)
        return rank

    def _rank_for_bytes(self, rows: int, width: int, max_bytes: int) -> int:
        fixed = self.stored_bytes(rows, width, 0)
        per_rank = self.stored_bytes(rows, width, 1) - fixed
        rank = (max_bytes - fixed) // per_rank
        if not 1 <= rank < width:
            low, high = fixed + per_rank, fixed + width * per_rank
            allowed = f"for {rows:,} x {width:,} it must be at least {low:,} (rank 1) and below {high:,}"
            raise config_error("max_bytes", max_bytes, allowed)
        return rank


@register_structure(FactorizedConfig)
class FactorizedEmbedding(CompactEmbedding):
    """Row = (code · decoder + bias [+ ELU(code · hidden) · hidden decoder]) · row scale; a zero code is a zero row."""

    config: FactorizedConfig
    hidden_weight: nn.Parameter | None
    hidden_bias: nn.Parameter | None
    hidden_decoder: nn.Parameter | None
    row_scales: nn.Parameter | None
    codes: nn.Parameter | None
    code_bytes: Tensor | None
    code_scales: nn.Parameter | None

    def __init__(
        self,
        config: FactorizedConfig,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        scale: float = 1.0,
    ) -> None:
        """Allocate codes and decoder."""
        super().__init__(config, num_embeddings, embedding_dim, padding_idx, scale)
        rows, rank, hidden = self.coded_rows, self.rank, self.config.hidden_width
        decoded, coded = self.config.trainable != "none", self.config.trainable == "all"

        def parameter(present: bool, trained: bool, *shape: int) -> nn.Parameter | None:
            return nn.Parameter(torch.empty(shape), requires_grad=trained) if present else None

        self.decoder = nn.Parameter(torch.empty(rank, embedding_dim), requires_grad=decoded)
        self.bias = nn.Parameter(torch.empty(embedding_dim), requires_grad=decoded)
        self.register_parameter("hidden_weight", parameter(hidden > 0, decoded, rank, hidden))
        self.register_parameter("hidden_bias", parameter(hidden > 0, decoded, hidden))
        self.register_parameter("hidden_decoder", parameter(hidden > 0, decoded, hidden, embedding_dim))
        self.register_parameter("row_scales", parameter(self.config.restore_norm, coded, rows))
        self.register_parameter("codes", parameter(not self.config.int8_codes, coded, rows, rank))
        self.register_parameter("code_scales", parameter(self.config.int8_codes, coded, rows))
        stored = torch.empty(rows, rank, dtype=torch.uint8) if self.config.int8_codes else None
        self.register_buffer("code_bytes", stored)

    @property
    def rank(self) -> int:
        """Width of a code, k."""
        assert self.config.rank is not None
        return self.config.rank

    def _codes_of(self, rows: Tensor | slice) -> Tensor:
        """Return codes (..., k) of rows."""
        if self.codes is not None:
            return self.codes[rows] if isinstance(rows, slice) else F.embedding(rows, self.codes)
        assert self.code_bytes is not None and self.code_scales is not None
        return (self.code_bytes[rows].to(self.code_scales.dtype) - _INT8_ZERO) * self.code_scales[rows].unsqueeze(-1)

    def _activation(self, codes: Tensor) -> Tensor:
        assert self.hidden_weight is not None and self.hidden_bias is not None
        return F.elu(codes @ self.hidden_weight.to(codes.dtype) + self.hidden_bias.to(codes.dtype))

    def coded_vectors(self, ids: Tensor) -> Tensor:
        """Decode the codes of the ids."""
        codes = self._codes_of(ids)
        vectors = codes @ self.decoder + self.bias
        if self.hidden_decoder is not None:
            vectors = vectors + self._activation(codes) @ self.hidden_decoder
        if self.row_scales is not None:
            vectors = vectors * self.row_scales[ids].unsqueeze(-1)
        return vectors * codes.any(-1, keepdim=True)

    def coded_scores(self, hidden: Tensor) -> Tensor:
        """Score as (hidden · decoderᵀ) · codesᵀ: k numbers a row, not D."""
        hidden = hidden.float()
        queries = hidden @ self.decoder.float().T
        offset = hidden @ self.bias.float().unsqueeze(-1)
        hidden_queries = None if self.hidden_decoder is None else hidden @ self.hidden_decoder.float().T
        scores = []
        for start in range(0, self.coded_rows, _ROWS_PER_CHUNK):
            rows = slice(start, start + _ROWS_PER_CHUNK)
            codes = self._codes_of(rows).float()
            chunk = queries @ codes.T + offset
            if hidden_queries is not None:
                chunk = chunk + hidden_queries @ self._activation(codes).T
            if self.row_scales is not None:
                chunk = chunk * self.row_scales[rows].float()
            scores.append(chunk * codes.any(-1))
        return torch.cat(scores, dim=-1)

    @torch.no_grad()
    def set_int8_codes(self, codes: Tensor, scales: Tensor) -> None:
        """Store int8 codes (V, k) and the scale of each row (V,)."""
        assert self.code_bytes is not None and self.code_scales is not None
        self.code_bytes.copy_((codes.to(torch.int16) + _INT8_ZERO).to(torch.uint8))
        self.code_scales.copy_(scales)

    def stored_dtype(self, name: str) -> torch.dtype:
        """Scales of rows are float16 whatever else is stored."""
        return torch.float16 if name in ("code_scales", "row_scales") else super().stored_dtype(name)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Start so that decoded rows have the usual spread."""
        self.decoder.normal_(std=_INITIAL_RANGE / math.sqrt(self.rank))
        self.bias.zero_()
        if self.codes is not None:
            self.codes.normal_()
        else:
            assert self.code_bytes is not None and self.code_scales is not None
            draw_codes_(self.code_bytes, self.rank, 8, 256)
            # Bytes drawn evenly spread over 256 / sqrt(12) steps.
            self.code_scales.fill_(12**0.5 / 256)
        for tensor in (self.hidden_weight, self.hidden_decoder):
            if tensor is not None:
                tensor.normal_(std=_INITIAL_RANGE)
        if self.hidden_bias is not None:
            self.hidden_bias.zero_()
        if self.row_scales is not None:
            self.row_scales.fill_(1.0)

    @torch.no_grad()
    def keep_rows(self, count: int) -> None:
        """Drop the codes and scales of the last rows."""
        for name in ("codes", "code_scales", "row_scales"):
            tensor = getattr(self, name)
            if tensor is not None:
                setattr(self, name, nn.Parameter(tensor[:count].clone(), requires_grad=tensor.requires_grad))
        if self.code_bytes is not None:
            self.code_bytes = self.code_bytes[:count].clone()
