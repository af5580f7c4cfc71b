"""A causal model on a compact table: its head's own map, its divergence from the dense model, and how to measure it."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

_GROUP = 64
_WINDOWS_PER_BATCH = 16
# Of a ridge, as a share of the mean eigenvalue.
_RIDGE = 1e-4


def rounded(values: Tensor, bits: int) -> Tensor:
    """Round to integers of so many bits with a float16 scale for each group of 64; gradients pass straight through."""
    groups = values.reshape(-1, math.gcd(values.numel(), _GROUP))
    largest = 2 ** (bits - 1) - 1
    scales = (groups.detach().abs().amax(1, keepdim=True) / largest).clamp(min=1e-7).half().float()
    nearest = (groups.detach() / scales).round().clamp(-largest, largest) * scales
    return values + (nearest - groups.detach()).view_as(values)


def rounded_bytes(count: int, bits: int) -> int:
    """Return what `count` rounded values take, scales included."""
    return math.ceil(count * bits / 8) + 2 * (count // math.gcd(count, _GROUP))


class HeadMap(nn.Module):
    """Scores = (A · hidden) · row + b, with A = a diagonal (float16) + integers of few bits, and b of 6 bits a row."""

    def __init__(self, rows: int, width: int, bits: int = 4, bias_bits: int = 6) -> None:
        """Start where scores are those of the table itself."""
        super().__init__()
        self.bits, self.bias_bits = bits, bias_bits
        self.diagonal = nn.Parameter(torch.ones(width))
        self.change = nn.Parameter(torch.zeros(width, width))
        self.bias = nn.Parameter(torch.zeros(rows))

    @property
    def nbytes(self) -> int:
        """Bytes of everything as it would be stored."""
        return (
            2 * self.diagonal.numel()
            + rounded_bytes(self.change.numel(), self.bits)
            + rounded_bytes(self.bias.numel(), self.bias_bits)
        )

    def matrix(self) -> Tensor:
        """Return A (D, D), as stored."""
        diagonal = self.diagonal + (self.diagonal.detach().half().float() - self.diagonal.detach())
        return torch.diag(diagonal) + rounded(self.change, self.bits)

    def row_bias(self) -> Tensor:
        """Return b (V,), as stored."""
        return rounded(self.bias, self.bias_bits)

    @torch.no_grad()
    def solve(self, dense: Tensor, compact: Tensor, given: Tensor, mean_state: Tensor) -> None:
        """Set A to the least-squares map, and b to what is then left at the mean state.

        Args:
            dense: the rows e (V, D).
            compact: the rows ê (V, D) that the codes give.
            given: the weights r (V,): the probability that the dense model gives each row, summed over text.
            mean_state: what enters the head, on average (D,).
        """
        dense, compact, given = dense.double(), compact.double(), given.double()
        weighted = compact * given[:, None]
        gram = weighted.T @ compact
        gram += _RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
        matrix = torch.linalg.solve(gram, weighted.T @ dense)
        self.diagonal.copy_(matrix.diagonal())
        self.change.copy_(matrix - torch.diag(matrix.diagonal()))
        self.bias.copy_((dense - compact @ self.matrix().double()) @ mean_state.double())


class Student:
    """A compact model with a head's map of its own, or without one."""

    def __init__(self, name: str, model: PreTrainedModel, head: HeadMap | None) -> None:
        """Keep them, and what is trained by kind."""
        self.name, self.model, self.head = name, model, head
        self.structure: Any = model.compact_embedding
        table = list(self.structure.parameters())
        of_table = {id(parameter) for parameter in table}
        others = [parameter for parameter in model.parameters() if id(parameter) not in of_table]
        self.kinds: dict[str, list[nn.Parameter]] = {
            "table": table,
            "head": [] if head is None else list(head.parameters()),
            "norms": [parameter for parameter in others if parameter.dim() == 1],
            "layers": [parameter for parameter in others if parameter.dim() > 1],
        }

    @property
    def nbytes(self) -> int:
        """Bytes of the table and the head's map."""
        return self.structure.nbytes + (0 if self.head is None else self.head.nbytes)

    def rows(self) -> Tensor:
        """Decode all rows (V, D)."""
        return self.structure.dense()

    def states(self, ids: Tensor, rows: Tensor) -> Tensor:
        """Return what enters the head (B, T, D), for ids (B, T) and the rows (V, D)."""
        vectors = F.embedding(ids, rows) * self.structure.scale
        return self.model.base_model(inputs_embeds=vectors, use_cache=False).last_hidden_state

    def queries(self, states: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return what is compared with the rows, (N, D) for states (..., D), and the bias of the rows (V,)."""
        flat = states.flatten(0, -2).float()
        return (flat, None) if self.head is None else (flat @ self.head.matrix().T, self.head.row_bias())


class Divergence(torch.autograd.Function):
    """KL(dense ‖ compact), summed over positions, and its gradients, without ever holding all scores."""

    @staticmethod
    def forward(
        ctx: Any, queries: Tensor, rows: Tensor, bias: Tensor | None, goal_states: Tensor, goal_rows: Tensor, step: int
    ) -> Tensor:
        """Score some positions at a time, and keep the gradients alone."""
        of_queries, of_rows = torch.empty_like(queries), torch.zeros_like(rows)
        of_bias = None if bias is None else torch.zeros_like(bias)
        total = queries.new_zeros(())
        for start in range(0, len(queries), step):
            part = slice(start, start + step)
            goal = F.log_softmax(goal_states[part] @ goal_rows.T, dim=-1)
            scores = queries[part] @ rows.T
            if bias is not None:
                scores += bias
            scores = F.log_softmax(scores, dim=-1)
            given = goal.exp()
            total += torch.dot(given.flatten(), goal.sub_(scores).flatten())
            slopes = scores.exp_().sub_(given)
            of_queries[part] = slopes @ rows
            of_rows.addmm_(slopes.T, queries[part])
            if of_bias is not None:
                of_bias += slopes.sum(0)
        ctx.save_for_backward(of_queries, of_rows, of_bias)
        return total

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        """Scale what `forward` found."""
        of_queries, of_rows, of_bias = ctx.saved_tensors
        (slope,) = slopes
        bias = None if of_bias is None else of_bias * slope
        return of_queries * slope, of_rows * slope, bias, None, None, None


@torch.no_grad()
def dense_statistics(teacher: PreTrainedModel, windows: Tensor) -> tuple[Tensor, Tensor]:
    """Return the probability that a dense model gives each row, summed over windows (N, T), and its mean state (D,)."""
    rows = teacher.get_input_embeddings().weight
    given, total = torch.zeros(len(rows), device=rows.device), torch.zeros(rows.shape[1], device=rows.device)
    for window in windows.to(rows.device):
        states = teacher.base_model(input_ids=window[None], use_cache=False).last_hidden_state[0]
        given += (states @ rows.T).softmax(-1).sum(0)
        total += states.sum(0)
    return given, total / windows.numel()


@torch.no_grad()
def compare(student: Student, teacher: PreTrainedModel, windows: Tensor) -> Tensor:
    """Return a row for each window (N, 4): dense loss, compact loss, divergence, share of equal first choices."""
    goal_rows = teacher.get_input_embeddings().weight
    rows, found = student.rows(), []
    for batch in windows.to(goal_rows.device).split(_WINDOWS_PER_BATCH):
        goal_states = teacher.base_model(input_ids=batch, use_cache=False).last_hidden_state
        states = student.states(batch, rows)
        for ids, goal_state, state in zip(batch, goal_states, states, strict=True):
            goal = F.log_softmax(goal_state[:-1] @ goal_rows.T, dim=-1)
            queries, bias = student.queries(state[:-1])
            scores = F.log_softmax(queries @ rows.T + (0.0 if bias is None else bias), dim=-1)
            losses = [F.nll_loss(each, ids[1:]) for each in (goal, scores)]
            divergence = (goal.exp() * (goal - scores)).sum(-1).mean()
            agreement = (goal.argmax(-1) == scores.argmax(-1)).float().mean()
            found.append(torch.stack([*losses, divergence, agreement]))
    return torch.stack(found).double().cpu()


def summary(found: Tensor) -> dict[str, Any]:
    """Return means over windows (N, 4) of `compare`, with 95 % intervals by windows."""

    def interval(values: Tensor) -> tuple[float, list[float]]:
        mean, half = float(values.mean()), 1.96 * float(values.std()) / math.sqrt(len(values))
        return mean, [mean - half, mean + half]

    ratio, ratio_between = interval(found[:, 1] - found[:, 0])
    divergence, divergence_between = interval(found[:, 2])
    agreement, agreement_between = interval(found[:, 3])
    return {
        "dense_perplexity": round(math.exp(float(found[:, 0].mean())), 4),
        "perplexity": round(math.exp(float(found[:, 1].mean())), 4),
        "over_dense": round(math.exp(ratio), 4),
        "over_dense_95": [round(math.exp(end), 4) for end in ratio_between],
        "divergence": round(divergence, 5),
        "divergence_95": [round(end, 5) for end in divergence_between],
        "top1_agreement": round(agreement, 4),
        "top1_agreement_95": [round(end, 4) for end in agreement_between],
    }
