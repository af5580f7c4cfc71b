"""Scores over the whole vocabulary, some rows of the table at a time: those of all tokens are never held.

The scores (n, V) of n predicted tokens, and their gradient, would take more memory than anything else. So some rows are
scored at a time, twice: first for the sums over the vocabulary, then, with gradients, for the slopes of the scores,
which go through the rows of the tile to what these are made of. Rows are decoded twice a step, for however many tokens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..modeling.tied import TableHead

# Of each model, at a time: 2^23 float32 values are 32 MB.
_SCORES_PER_TILE, _VALUES_PER_TILE = 1 << 23, 1 << 22
# The same where all rows are scored for some tokens, and how many such tiles are as fast as rows that are decoded.
_SCORES_AT_ONCE, _MOST_TOKEN_TILES = 1 << 25, 4


def precise(numbers: Tensor) -> Tensor:
    """Return numbers in float32, or in float64 where they are that."""
    return numbers.to(torch.promote_types(numbers.dtype, torch.float32))


@dataclasses.dataclass(frozen=True)
class Predictor:
    """What predicts tokens: an output layer, dense or one that scores against a compact table, and what enters it.

    Attributes:
        states: of n predicted tokens (n, D).
        layer: that scores all rows by them.
        values: that stand in for the layer's own, by the names that `trained` gives them.
    """

    states: Tensor
    layer: Any
    values: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)

    @property
    def num_rows(self) -> int:
        """V, the tokens that are scored."""
        return self.layer.weight.shape[0]

    def trained(self) -> dict[str, nn.Parameter]:
        """Return what the scores are made of beside the states, as far as it trains."""
        # A head with a table of its own has that among its modules, another has not.
        named = dict(self.layer.named_parameters(prefix="layer", recurse=False))
        if isinstance(self.layer, TableHead):
            named |= self.layer.table.named_parameters(prefix="table")
        return {name: value for name, value in named.items() if value.requires_grad}

    def rows(self, start: int, stop: int) -> Tensor:
        """Return rows (m, D)."""
        if not isinstance(self.layer, TableHead):
            return precise(self.values.get("layer.weight", self.layer.weight)[start:stop])
        ids = torch.arange(start, stop, device=self.states.device)
        return precise(functional_call(self.layer.table, self._values_of_table(), (ids,), {"scale": 1.0}))

    def scores(self, states: Tensor) -> Tensor:
        """Return the scores (m, V) of states (m, D) against a compact table."""
        scores = functional_call(self.layer.table, self._values_of_table(), (states,), {"project": True})
        bias = self.bias(0, self.num_rows)
        return scores if bias is None else scores + bias

    def _values_of_table(self) -> dict[str, Tensor]:
        return {name.removeprefix("table."): value for name, value in self.values.items() if name.startswith("table.")}

    def of_copies(self, trained: Sequence[Tensor]) -> tuple[Predictor, Tensor]:
        """Return the same with copies of what trains, and states, both without a past.

        Whoever watches the parameters themselves, as data-parallel training does, must see one gradient a step.
        """
        copies = [value.detach().requires_grad_() for value in trained]
        values = dict(zip(self.trained(), copies, strict=True))
        return dataclasses.replace(self, values=values), precise(self.states.detach())

    @property
    def tokens_of_tile(self) -> int:
        """How many tokens are scored at a time where all rows are."""
        return max(1, _SCORES_AT_ONCE // self.num_rows)

    def bias(self, start: int, stop: int) -> Tensor | None:
        """Return what is added to the scores of rows (m,), if there is such a thing."""
        bias = self.values.get("layer.bias", self.layer.bias)
        return None if bias is None else precise(bias[start:stop])

    def tiles(self) -> Iterator[tuple[int, int]]:
        """Yield where tiles start and stop."""
        count, width = self.states.shape
        step = max(1, min(_SCORES_PER_TILE // max(1, count), _VALUES_PER_TILE // width))
        for start in range(0, self.num_rows, step):
            yield start, min(start + step, self.num_rows)


def can_predict_in_tiles(layer: nn.Module | None) -> bool:
    """Tell whether an output layer is one whose rows can be scored some at a time."""
    return isinstance(layer, TableHead) or type(layer) is nn.Linear


def log_probabilities(student: Predictor, ids: Tensor) -> Tensor:
    """Return the log-probabilities (n, k) that some tokens (n, k) have at each predicted position."""
    # Methods score faster than they decode: so few tokens are scored by the table itself, some at a time, in float32.
    few = isinstance(student.layer, TableHead) and len(ids) <= _MOST_TOKEN_TILES * student.tokens_of_tile
    few = few and student.states.dtype != torch.float64
    function = _LogProbabilitiesOfTokens if few else _LogProbabilities
    with torch.autocast(student.states.device.type, enabled=False):
        return function.apply(student, ids, student.states, *student.trained().values())


class _LogProbabilitiesOfTokens(torch.autograd.Function):
    """Log-probabilities by some predicted tokens at a time, which all rows are scored for."""

    @staticmethod
    def forward(ctx: Any, student: Predictor, ids: Tensor, *inputs: Tensor) -> Tensor:
        """Score all rows for some tokens after the other."""
        own, step = precise(student.states), student.tokens_of_tile
        totals, found = [own.new_zeros(0)], [own.new_zeros(0, ids.shape[1])]
        for states, wanted in zip(own.split(step), ids.split(step), strict=True):
            scores = student.scores(states)
            totals.append(scores.logsumexp(1))
            found.append(scores.gather(1, wanted) - totals[-1][:, None])
        ctx.student = student
        ctx.save_for_backward(ids, torch.cat(totals), *inputs)
        return torch.cat(found)

    @staticmethod
    def backward(ctx: Any, *above: Tensor) -> tuple[Tensor | None, ...]:
        """Score again, with gradients."""
        ids, total, *inputs = ctx.saved_tensors
        student, own = ctx.student.of_copies(inputs[1:])
        found = [torch.zeros_like(precise(each)) for each in inputs]
        step, start = student.tokens_of_tile, 0
        with torch.autocast(total.device.type, enabled=False):
            for states, wanted, slope in zip(own.split(step), ids.split(step), above[0].split(step), strict=True):
                stop, states = start + len(states), states.requires_grad_()
                with torch.enable_grad():
                    scores = student.scores(states)
                slopes = (scores.detach() - total[start:stop, None]).exp_().mul_(-slope.sum(1, keepdim=True))
                slopes.scatter_add_(1, wanted, slope)
                made = [states, *student.values.values()]
                parts = torch.autograd.grad(scores, made, slopes, allow_unused=True)
                found[0][start:stop] = parts[0]
                for sum_of, part in zip(found[1:], parts[1:], strict=True):
                    if part is not None:
                        sum_of += part
                start = stop
        return None, None, *(each.to(value.dtype) for each, value in zip(found, inputs, strict=True))


class _LogProbabilities(torch.autograd.Function):
    """Log-probabilities of a few tokens: their scores, less what all of them add up to."""

    @staticmethod
    def forward(ctx: Any, student: Predictor, ids: Tensor, *inputs: Tensor) -> Tensor:
        """Go over all rows for the sums."""
        own = precise(student.states)
        own_sum, found = LogSum(own), own.new_zeros(ids.shape)
        for start, stop in student.tiles():
            scores = scores_of(student, own, start, stop)[0]
            inside, local = _in_tile(ids, start, stop)
            found = torch.where(inside, scores.gather(1, local), found)
            own_sum.add(scores)
        total = own_sum.value()
        ctx.student = student
        ctx.save_for_backward(ids, total, *inputs)
        return found - total[:, None]

    @staticmethod
    def backward(ctx: Any, *above: Tensor) -> tuple[Tensor | None, ...]:
        """Go over all rows again."""
        ids, total, *inputs = ctx.saved_tensors

        def slopes(scores: Tensor, start: int, stop: int) -> Tensor:
            inside, local = _in_tile(ids, start, stop)
            probabilities = scores.sub_(total[:, None]).exp_()
            result = probabilities.mul_(-above[0].sum(1, keepdim=True))
            return result.scatter_add_(1, local, above[0].where(inside, 0.0))

        with torch.no_grad(), torch.autocast(total.device.type, enabled=False):
            return None, None, *gradients(ctx.student, tuple(inputs), ctx.needs_input_grad[2], slopes)


def _in_tile(ids: Tensor, start: int, stop: int) -> tuple[Tensor, Tensor]:
    """Return which ids (n, k) are rows of a tile, and their columns there; of others any."""
    inside = (ids >= start) & (ids < stop)
    return inside, (ids - start).clamp(0, stop - start - 1)


def gradients(
    student: Predictor, inputs: tuple[Tensor, ...], of_states: bool, slopes_of: Callable[[Tensor, int, int], Tensor]
) -> list[Tensor]:
    """Return the gradients for the states, and for what the rows are made of.

    Args:
        student: whose rows are scored.
        inputs: its states, and what the rows are made of.
        of_states: whether the states have a gradient.
        slopes_of: gives the gradient for the scores (n, m) of a tile, which it may overwrite, from where to where.
    """
    student, own = student.of_copies(inputs[1:])
    copies = list(student.values.values())
    found = [torch.zeros_like(precise(each)) for each in inputs]
    for start, stop in student.tiles():
        with torch.enable_grad():
            scores, rows, bias = scores_of(student, own, start, stop)
        slopes = slopes_of(scores, start, stop)
        if of_states:
            found[0].addmm_(slopes, rows.detach())
        made = [(rows, slopes.T @ own), *([] if bias is None else [(bias, slopes.sum(0))])]
        made = [(output, slope) for output, slope in made if output.requires_grad]
        if made:
            outputs, above = zip(*made, strict=True)
            parts = torch.autograd.grad(outputs, copies, above, allow_unused=True)
            for total, part in zip(found[1:], parts, strict=True):
                if part is not None:
                    total += part
    return [each.to(value.dtype) for each, value in zip(found, inputs, strict=True)]


def scores_of(predictor: Predictor, states: Tensor, start: int, stop: int) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the scores (n, m) of some rows, without gradients; the rows; and their bias."""
    rows, bias = predictor.rows(start, stop), predictor.bias(start, stop)
    with torch.no_grad():
        return (states @ rows.T if bias is None else torch.addmm(bias, states, rows.T)), rows, bias


class LogSum:
    """The logarithm of a sum of exponentials over columns that come bit by bit."""

    def __init__(self, like: Tensor) -> None:
        """Start with no column for rows of the shape and type of others (n, D)."""
        self.most = like.new_full((len(like),), -torch.inf)
        self.total = like.new_zeros(len(like))

    def add(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Add columns (n, m), which are overwritten; return what earlier terms shrink by (n,), and the new terms."""
        most = torch.maximum(self.most, scores.amax(1))
        shrunk = (self.most - most).exp()
        terms = scores.sub_(most[:, None]).exp_()
        self.most, self.total = most, self.total * shrunk + terms.sum(1)
        return shrunk, terms

    def value(self) -> Tensor:
        """Return the logarithms (n,)."""
        return self.most + self.total.log()
