"""From the 128 bits of a word to its vector: the four ways of HashFormers (Xue & Aletras, 2022)."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .codes import decoded_scores, joined
from .hashing import SIGNATURE_BITS

# Of the truncated normal distribution that everything starts from.
INITIAL_STD = 0.02
CHUNK_BITS = 10
CHUNKS = math.ceil(SIGNATURE_BITS / CHUNK_BITS)
CHUNK_ENTRIES = 1 << CHUNK_BITS

BitsBetween = Callable[[int, int], Tensor]


class HashVariant(nn.Module):
    """Turns bits (..., 128), 0 and 1 in uint8, into vectors (..., D)."""

    def forward(self, inputs: Tensor, rows: int | None = None, bits_between: BitsBetween | None = None) -> Tensor:
        """Return the vectors of bits, or the scores of hidden states: one entry, so that hooks act on both."""
        if rows is None or bits_between is None:
            return self.vectors(inputs)
        return self.scores(inputs, rows, bits_between)

    def vectors(self, bits: Tensor) -> Tensor:
        """Return the vectors (..., D) of bits (..., 128)."""
        raise NotImplementedError

    def scores(self, hidden: Tensor, rows: int, bits_between: BitsBetween) -> Tensor:
        """Return float32 scores (N, rows) of hidden states (N, D) against the vectors of stored bits."""
        raise NotImplementedError

    def entries_of(self, bits: Tensor) -> Tensor:
        """Return what decides the vectors (..., k): two words that share it share their vector."""
        return bits

    def start(self, tensor: Tensor) -> None:
        """Draw a tensor's values anew."""
        bound = 2 * INITIAL_STD
        nn.init.trunc_normal_(tensor, std=INITIAL_STD, a=-bound, b=bound)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Start from random values."""
        for parameter in self.parameters():
            self.start(parameter)


class BucketVariant(HashVariant):
    """The hash modulo the number of buckets is the row of a table: B·D parameters."""

    def __init__(self, width: int, buckets: int) -> None:
        """Allocate the table (B, D)."""
        super().__init__()
        self.table = nn.Parameter(torch.empty(buckets, width))

    def entries_of(self, bits: Tensor) -> Tensor:
        """Return the buckets (..., 1): the hash as one number of 128 bits, modulo B."""
        buckets = len(self.table)
        powers = torch.tensor([pow(2, bit, buckets) for bit in range(SIGNATURE_BITS)], device=bits.device)
        return (bits * powers).sum(-1, keepdim=True) % buckets

    def vectors(self, bits: Tensor) -> Tensor:
        """Look the buckets up."""
        return F.embedding(self.entries_of(bits).squeeze(-1), self.table)

    def scores(self, hidden: Tensor, rows: int, bits_between: BitsBetween) -> Tensor:
        """Score the buckets once, and give each row its bucket's score."""
        tables = (hidden @ self.table.float().T).unsqueeze(0)
        return _selected_scores(tables, rows, lambda start, stop: self.entries_of(bits_between(start, stop)))


class PoolVariant(HashVariant):
    """A weighted sum of 13 entries of one table: 12 chunks of 10 bits, one of 8. 1,024·D + 13·D parameters."""

    def __init__(self, width: int) -> None:
        """Allocate the table (1024, D), and the weights (13, D) before their softmax."""
        super().__init__()
        self.table = nn.Parameter(torch.empty(CHUNK_ENTRIES, width))
        self.chunk_weights = nn.Parameter(torch.empty(CHUNKS, width))

    def entries_of(self, bits: Tensor) -> Tensor:
        """Return the value of each chunk (..., 13)."""
        powers = 1 << torch.arange(CHUNK_BITS, device=bits.device)
        padded = F.pad(bits, (0, CHUNKS * CHUNK_BITS - SIGNATURE_BITS))
        return (padded.unflatten(-1, (CHUNKS, CHUNK_BITS)) * powers).sum(-1)

    def vectors(self, bits: Tensor) -> Tensor:
        """Add the weighted entries up."""
        entries = self.entries_of(bits)
        weights = self.chunk_weights.softmax(0)
        # One chunk after the other, so that (..., 13, D) is never built.
        total = F.embedding(entries[..., 0], self.table) * weights[0]
        for chunk in range(1, CHUNKS):
            total = total + F.embedding(entries[..., chunk], self.table) * weights[chunk]
        return total

    def scores(self, hidden: Tensor, rows: int, bits_between: BitsBetween) -> Tensor:
        """Score 13 x 1,024 weighted entries once, and add 13 of them up for each row."""
        weights = self.chunk_weights.float().softmax(0).unsqueeze(1)
        tables = (hidden * weights) @ self.table.float().T
        return _selected_scores(tables, rows, lambda start, stop: self.entries_of(bits_between(start, stop)))


class LinearVariant(HashVariant):
    """A linear map of 128 features, each one bit's."""

    def features(self, bits: Tensor, dtype: torch.dtype) -> Tensor:
        """Return what is mapped (..., 128)."""
        raise NotImplementedError

    def matrix(self) -> Tensor:
        """Return the map (D, 128)."""
        raise NotImplementedError

    def offset(self) -> Tensor | None:
        """Return what is added (D,)."""
        return None

    def vectors(self, bits: Tensor) -> Tensor:
        """Map the features."""
        matrix = self.matrix()
        return F.linear(self.features(bits, matrix.dtype), matrix, self.offset())

    def scores(self, hidden: Tensor, rows: int, bits_between: BitsBetween) -> Tensor:
        """Map the hidden states back to the 128 features: k = 128 numbers a row are compared, not D."""
        # The 128 terms of a vector nearly cancel; on a CPU the digits that this costs are cheap to have.
        exact = torch.float64 if hidden.device.type == "cpu" else torch.float32
        hidden = hidden.to(exact)
        queries = hidden @ self.matrix().to(exact)
        scores = decoded_scores(queries, rows, lambda start, stop: self.features(bits_between(start, stop), exact))
        offset = self.offset()
        return (scores if offset is None else scores + hidden @ offset.to(exact).unsqueeze(-1)).float()


class AddVariant(LinearVariant):
    """(W₁ b + W₂ (1 − b)) / √128: one column of either matrix for each bit. 2·128·D parameters."""

    def __init__(self, width: int) -> None:
        """Allocate the two matrices (D, 128)."""
        super().__init__()
        self.ones = nn.Parameter(torch.empty(width, SIGNATURE_BITS))
        self.zeros = nn.Parameter(torch.empty(width, SIGNATURE_BITS))

    def features(self, bits: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the bits as numbers."""
        return bits.to(dtype)

    def matrix(self) -> Tensor:
        """Return what a bit changes when it is set."""
        return (self.ones - self.zeros) / math.sqrt(SIGNATURE_BITS)

    def offset(self) -> Tensor:
        """Return the vector of a word without any bit."""
        return self.zeros.sum(-1) / math.sqrt(SIGNATURE_BITS)


class ProjVariant(LinearVariant):
    """The Pearson correlation of the bits with a learned row for each of the D dimensions. 128·D parameters."""

    scales: nn.Parameter | None

    def __init__(self, width: int, scaled: bool) -> None:
        """Allocate the rows (D, 128); `scaled` ones have an amplitude each (D,), which the paper's do not."""
        super().__init__()
        self.rows = nn.Parameter(torch.empty(width, SIGNATURE_BITS))
        self.register_parameter("scales", nn.Parameter(torch.empty(width)) if scaled else None)

    def features(self, bits: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the bits, centred and of norm 1."""
        return _centred(bits.to(torch.promote_types(dtype, torch.float32))).to(dtype)

    def matrix(self) -> Tensor:
        """Return the rows, centred and of norm 1, times their amplitudes."""
        rows = _centred(self.rows.to(torch.promote_types(self.rows.dtype, torch.float32)))
        if self.scales is not None:
            rows = rows * self.scales.unsqueeze(-1)
        return rows.to(self.rows.dtype)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the rows; amplitudes start at 1."""
        self.start(self.rows)
        if self.scales is not None:
            self.scales.fill_(1.0)


def _centred(values: Tensor) -> Tensor:
    # Padding has no bits, and a norm of 0.
    return F.normalize(values - values.mean(-1, keepdim=True), dim=-1, eps=1e-6)


def _selected_scores(tables: Tensor, rows: int, entries_between: BitsBetween) -> Tensor:
    """Add the scores in `tables` (k, N, entries) up that the entries (·, k) of each row select: (N, rows)."""

    def score(start: int, stop: int) -> Tensor:
        entries = entries_between(start, stop)
        total = tables[0].index_select(-1, entries[:, 0])
        for table, chosen in zip(tables[1:], entries.T[1:], strict=True):
            total = total + table.index_select(-1, chosen)
        return total

    return joined(score, tables.new_empty(tables.shape[1], rows), SIGNATURE_BITS)
