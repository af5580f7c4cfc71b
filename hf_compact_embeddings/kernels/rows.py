"""Rows of a table that were decoded once, in a type that is fast to read."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.utils import logging

from ..modeling.codes import is_traced, joined
from ..modeling.structure import CompactEmbedding

# How decoded rows may lie in memory.
RUNTIMES = {"int8": torch.int8, "float16": torch.float16, "bfloat16": torch.bfloat16}
_LARGEST = 127
# From so many queries on, one matrix product after the other over widened rows is as fast as the compiled loop; and
# from so many on, where hidden states have the type of the rows, the processor's own product of that type.
_MOST_QUERIES = 32
_MOST_QUERIES_OF_THE_TYPE = 4
# A GPU takes so many times the rows of a CPU at a time.
_GPU_CHUNKS = 64

logger = logging.get_logger(__name__)


@dataclasses.dataclass(frozen=True)
class DecodedRows:
    """All rows of a table.

    Attributes:
        rows: the values (V, D), int8 or floats.
        scales: what each row's are multiplied by (V,), float32; ones for floats.
        compiled: whether compiled loops read them; else torch does.
    """

    rows: Tensor
    scales: Tensor
    compiled: bool

    @classmethod
    def of(cls, table: CompactEmbedding, runtime: str) -> DecodedRows:
        """Decode a table, some rows at a time."""
        shape = (table.num_embeddings, table.embedding_dim)
        # What inference mode makes is no use elsewhere.
        with torch.inference_mode(False), torch.no_grad():
            rows = torch.empty(shape, dtype=RUNTIMES[runtime], device=table.device)
            scales = torch.ones(len(rows), device=table.device)
            start = 0
            for chunk in table.dense_chunks():
                stop = start + len(chunk)
                if rows.dtype == torch.int8:
                    chunk = chunk.float()
                    scales[start:stop] = chunk.abs().amax(1) / _LARGEST
                    # A row of zeros has a scale of zero.
                    least = torch.finfo(torch.float32).tiny
                    chunk = (chunk / scales[start:stop, None].clamp(min=least)).round().clamp(-_LARGEST, _LARGEST)
                rows[start:stop] = chunk
                start = stop
        found = cls(rows, scales, rows.device.type == "cpu" and numba_works())
        found.warm_up()
        return found

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return self.rows.nbytes + self.scales.nbytes

    def warm_up(self) -> None:
        """Compile now what would be compiled at the first call."""
        if self.compiled:
            few = dataclasses.replace(self, rows=self.rows[:1], scales=self.scales[:1])
            few.scores(self.scales.new_zeros(1, self.rows.shape[1]))
            few.look_up(torch.zeros(1, dtype=torch.int64), torch.float32)

    def look_up(self, ids: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the rows (..., D) of ids (...), which were checked, in a type."""
        flat = ids.reshape(-1)
        if not is_traced() and self.compiled and (self.rows.dtype == torch.int8 or self.rows.dtype != dtype):
            from .compiled import look_up

            found = look_up(self.rows, self.scales, flat).to(dtype)
        else:
            found = self.rows.index_select(0, flat)
            if self.rows.dtype == torch.int8:
                found = found.float() * self.scales.index_select(0, flat).unsqueeze(-1)
            found = found.to(dtype)
        return found.view(*ids.shape, self.rows.shape[1])

    def scores(self, hidden: Tensor) -> Tensor:
        """Return hidden · rowsᵀ (N, V) of hidden states (N, D): in float32, or in their own type."""
        same_type = hidden.dtype == self.rows.dtype
        most = _MOST_QUERIES_OF_THE_TYPE if same_type else _MOST_QUERIES
        # Shapes that are being traced may stand for others.
        if self.compiled and not torch.jit.is_tracing() and 0 < len(hidden) <= most:
            return _compiled_scores(self.rows, self.scales, hidden.float())
        if same_type:
            return F.linear(hidden, self.rows)
        hidden = hidden.float()

        def score(start: int, stop: int) -> Tensor:
            found = hidden @ self.rows[start:stop].to(hidden.dtype).T
            return found * self.scales[start:stop] if self.rows.dtype == torch.int8 else found

        chunks = 1 if hidden.device.type == "cpu" else _GPU_CHUNKS
        width = -(-self.rows.shape[1] // chunks)
        return joined(score, hidden.new_empty(len(hidden), len(self.rows)), width)


# An operation of its own, so that torch's compiler leaves it alone.
@torch.library.custom_op(
    "hf_compact_embeddings::scores", mutates_args=(), schema="(Tensor rows, Tensor scales, Tensor hidden) -> Tensor"
)
def _scores_in_graphs(rows: Tensor, scales: Tensor, hidden: Tensor) -> Tensor:
    from .compiled import scores

    return scores(rows, scales, hidden.detach())


@_scores_in_graphs.register_fake
def _(rows: Tensor, scales: Tensor, hidden: Tensor) -> Tensor:
    return hidden.new_empty(len(hidden), len(rows))


def _compiled_scores(rows: Tensor, scales: Tensor, hidden: Tensor) -> Any:
    if is_traced():
        return _scores_in_graphs(rows, scales, hidden)
    from .compiled import scores

    return scores(rows, scales, hidden.detach())


@functools.cache
def numba_works() -> bool:
    """Whether numba can be imported; cached, so that the reason why not is logged once."""
    try:
        from . import compiled  # noqa: F401
    # A NumPy that is too new is an ImportError, a broken llvmlite an OSError, an old numba an AttributeError, and no
    # folder where compiled code may be kept a RuntimeError.
    except (ImportError, OSError, AttributeError, RuntimeError) as error:
        logger.warning(
            f"Compact tables are read in plain torch, slower than the dense table for a few tokens or queries, because "
            f"numba cannot be imported: {error}. `pip install 'hf_compact_embeddings[fast]'` installs one that can be."
        )
        return False
    return True
