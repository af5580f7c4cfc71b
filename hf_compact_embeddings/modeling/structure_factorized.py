"""Factorized embeddings: a short code for each row, and one decoder for all of them.

| tensor | shape | type | meaning |
|---|---|---|---|
| `codes` | (V, k) | float | the code of each row; or, with `int8_codes`, instead of it: |
| `code_bytes` | (V, k) | uint8 | the code of each row in steps, 128 for zero |
| `code_scales` | (V,) | float16 | how large the steps of each row are |
| `decoder` | (k, D) | float | from codes to rows |
| `bias` | (D,) | float | what is added to all decoded rows |
| `hidden_weight` | (k, h) | float | only with `hidden_width` h: from codes to ELU units, |
| `hidden_bias` | (h,) | float | their bias, |
| `hidden_decoder` | (h, D) | float | and from the units to rows |
| `row_scales` | (V,) | float16 | only with `restore_norm`: what each decoded row is multiplied by |

V are the coded rows, k is the rank. A row whose code is all zero reads as zero.
"""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .codes import draw_codes_, joined
from .errors import CompactConfigError, config_error
from .options import StructureConfig, StructureLayout, choice, flag, integer, number
from .structure import CompactEmbedding, register_structure

_INITIAL_RANGE = 0.02
INT8_ZERO = 128
_DEFAULT_RATIO = 10.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class FactorizedConfig(StructureConfig):
    """Options of factorized embeddings. A budget, `rank` or `parameter_ratio` gives the size; none: parameter ratio 10.

    Attributes:
        rank: k, the width of a code; below the width of the table.
        parameter_ratio: take the highest rank with V·D / (V·k + k·D) of at least this: the paper's count, of floats.
        fit: "autoencoder" keeps the directions of the rows; "svd" has the least squared error.
        preset: of the autoencoder: "default", from the closed form on; "paper", the recipe of 2021.
        cosine_loss: coefficient of 1 - cos in the autoencoder's loss; None: the preset's own.
        power_loss: coefficient of the mean |ê - e|^exponent; None: the preset's own.
        rmse_loss: coefficient of the root mean square error; None: the preset's own.
        hidden_width: units of a non-linear (ELU) part of the decoder; 0: none. For the autoencoder.
        restore_norm: store a float16 scale a row that gives each decoded row its original norm.
        int8_codes: store codes in 8 bits, with a float16 scale a row; they are then not trained.
        frequency_power: tokens weigh (count + 1)^power in the fit, where counts are known.
        metric: what an error costs: "plain", its squared length; "sensitivity", how far it moves what the model gives
            over texts: the scores of a head that is tied to the table, or else the states. With such a head it keeps
            the model's predictions, at the cost of what is later fine-tuned without the head.
        trainable: what later training changes: "all", "decoder" or "none".
    """

    method: ClassVar[str] = "factorized"

    rank: int | None = integer(None, 1)
    parameter_ratio: float | None = number(None, 1e-3)
    fit: str = choice("autoencoder", "svd")
    preset: str = choice("default", "paper")
    cosine_loss: float | None = number(None, 0.0)
    power_loss: float | None = number(None, 0.0)
    rmse_loss: float | None = number(None, 0.0)
    hidden_width: int = integer(0)
    restore_norm: bool = flag()
    int8_codes: bool = flag()
    frequency_power: float = number(0.75, 0.0, 4.0)
    metric: str = choice("plain", "sensitivity")
    trainable: str = choice("all", "decoder", "none")

    def __post_init__(self) -> None:
        """Check all fields, and those that exclude each other."""
        super().__post_init__()
        given = {name: getattr(self, name) for name in ("rank", "parameter_ratio") if getattr(self, name) is not None}
        if len(given) > 1:
            raise CompactConfigError(f"Only one of `rank` and `parameter_ratio` can be given: {given}.")
        if self.hidden_width and (self.fit, self.preset) != ("autoencoder", "default"):
            fit_and_preset = (self.fit, self.preset)
            allowed = f"fit and preset {fit_and_preset} have a linear decoder"
            raise config_error("hidden_width", self.hidden_width, allowed)

    def rank_for_ratio(self, rows: int, width: int) -> int:
        """Return the highest rank with at least the ratio of floats that is asked for."""
        ratio = self.parameter_ratio or _DEFAULT_RATIO
        highest = rows * width / (rows + width)
        # A hair, so that the exact ratio of a rank gives that rank.
        rank = math.floor(highest / ratio * (1 + 1e-12))
        if not 1 <= rank < width:
            lowest = highest / max(1, width - 1)
            allowed = f"for {rows:,} x {width:,} it must be {lowest:.4g} (rank {width - 1:,}) to {highest:.4g} (rank 1)"
            raise config_error("parameter_ratio", ratio, allowed)
        return rank

    def rank_for_bytes(self, rows: int, width: int, max_bytes: int) -> int:
        """Return the highest rank below the width of which everything stored takes at most so many bytes."""
        per_row = 2 * (self.int8_codes + self.restore_norm)
        fixed = rows * per_row + (width + self.hidden_width * (1 + width)) * self.float_bytes
        per_rank = rows * (1 if self.int8_codes else self.float_bytes) + (width + self.hidden_width) * self.float_bytes
        rank = min((max_bytes - fixed) // per_rank, width - 1)
        if rank < 1:
            raise config_error("max_bytes", max_bytes, f"rank 1 takes {fixed + per_rank:,} bytes")
        return rank


@dataclasses.dataclass(frozen=True, kw_only=True)
class FactorizedLayout(StructureLayout):
    """Sizes of factorized embeddings.

    Attributes:
        rank: k, the width of a code.
        hidden_width: h, units of the non-linear part of the decoder.
        int8_codes: whether codes are bytes.
        row_scales: whether decoded rows have a scale each.
    """

    rank: int = integer(least=1)
    hidden_width: int = integer()
    int8_codes: bool = flag()
    row_scales: bool = flag()


@register_structure
class FactorizedEmbedding(CompactEmbedding):
    """Row = (code · decoder + bias [+ ELU(code · hidden) · hidden decoder]) · row scale; a zero code is a zero row."""

    options_class = FactorizedConfig
    layout_class = FactorizedLayout

    options: FactorizedConfig
    layout: FactorizedLayout
    hidden_weight: nn.Parameter | None
    hidden_bias: nn.Parameter | None
    hidden_decoder: nn.Parameter | None
    row_scales: nn.Parameter | None
    codes: nn.Parameter | None
    code_bytes: Tensor
    code_scales: nn.Parameter

    def allocate(self) -> None:
        """Allocate codes and decoder."""
        options, layout = self.options, self.layout
        rows, rank, hidden = layout.coded_rows, layout.rank, layout.hidden_width
        decoded, coded = options.trainable != "none", options.trainable == "all"

        def parameter(present: bool, trained: bool, *shape: int) -> nn.Parameter | None:
            return nn.Parameter(torch.empty(shape), requires_grad=trained) if present else None

        self.decoder = nn.Parameter(torch.empty(rank, self.embedding_dim), requires_grad=decoded)
        self.bias = nn.Parameter(torch.empty(self.embedding_dim), requires_grad=decoded)
        self.register_parameter("hidden_weight", parameter(hidden > 0, decoded, rank, hidden))
        self.register_parameter("hidden_bias", parameter(hidden > 0, decoded, hidden))
        self.register_parameter("hidden_decoder", parameter(hidden > 0, decoded, hidden, self.embedding_dim))
        self.register_parameter("row_scales", parameter(layout.row_scales, coded, rows))
        self.register_parameter("codes", parameter(not layout.int8_codes, coded, rows, rank))
        self.register_parameter("code_scales", parameter(layout.int8_codes, coded, rows))
        stored = torch.empty(rows, rank, dtype=torch.uint8) if layout.int8_codes else None
        self.register_buffer("code_bytes", stored)

    @classmethod
    def layout_for(
        cls, options: FactorizedConfig, rows: int, width: int, max_bytes: int | None = None
    ) -> FactorizedLayout:
        """Take the rank that is asked for, or the highest one that fits."""
        if options.rank is not None:
            rank = options.rank
        elif options.parameter_ratio is None and max_bytes is not None:
            rank = options.rank_for_bytes(rows, width, max_bytes)
        else:
            rank = options.rank_for_ratio(rows, width)
        return FactorizedLayout(
            coded_rows=rows,
            rank=rank,
            hidden_width=options.hidden_width,
            int8_codes=options.int8_codes,
            row_scales=options.restore_norm,
        )

    def check_layout(self) -> None:
        """Raise if codes are as wide as the rows."""
        super().check_layout()
        if self.layout.rank >= self.embedding_dim:
            allowed = f"it must be below the table's width of {self.embedding_dim:,}"
            raise config_error("rank", self.layout.rank, allowed)

    def _codes_of(self, rows: Tensor | slice) -> Tensor:
        """Return codes (..., k) of rows."""
        if self.codes is not None:
            return self.codes[rows] if isinstance(rows, slice) else F.embedding(rows, self.codes)
        return (self.code_bytes[rows].to(self.code_scales.dtype) - INT8_ZERO) * self.code_scales[rows].unsqueeze(-1)

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

        def score(start: int, stop: int) -> Tensor:
            rows = slice(start, stop)
            codes = self._codes_of(rows).float()
            chunk = queries @ codes.T + offset
            if hidden_queries is not None:
                chunk = chunk + hidden_queries @ self._activation(codes).T
            if self.row_scales is not None:
                chunk = chunk * self.row_scales[rows].float()
            return chunk * codes.any(-1)

        return joined(score, queries.new_empty(len(queries), self.layout.coded_rows), self.layout.rank)

    def stored_dtype(self, name: str) -> torch.dtype:
        """Scales of rows are float16 whatever else is stored."""
        return torch.float16 if name in ("code_scales", "row_scales") else super().stored_dtype(name)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Start so that decoded rows have the usual spread."""
        self.decoder.normal_(std=_INITIAL_RANGE / math.sqrt(self.layout.rank))
        self.bias.zero_()
        if self.codes is not None:
            self.codes.normal_()
        else:
            draw_codes_(self.code_bytes, self.layout.rank, 8, 256)
            # Bytes drawn evenly have a spread of 256 / sqrt(12).
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
        if self.layout.int8_codes:
            self.code_bytes = self.code_bytes[:count].clone()
