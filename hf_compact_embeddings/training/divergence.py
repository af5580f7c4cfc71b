"""How far predictions are from a teacher's, over the whole vocabulary, without ever holding the scores of all tokens.

Rows of both tables are scored some at a time, as `kernels.score_tiles` tells; the slopes of the scores are p - q.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..kernels.score_tiles import LogSum, Predictor, gradients, precise, scores_of


def divergence(student: Predictor, teacher: Predictor) -> Tensor:
    """Return the mean Kullback-Leibler divergence from the teacher's distributions to the student's."""
    wanted = torch.is_grad_enabled()
    with torch.autocast(student.states.device.type, enabled=False):
        return _Divergence.apply(student, teacher, wanted, student.states, *student.trained().values())


class _Divergence(torch.autograd.Function):
    """The divergence, with gradients that are found on the way: the teacher's scores are not made a third time."""

    @staticmethod
    def forward(ctx: Any, student: Predictor, teacher: Predictor, wanted: bool, *inputs: Tensor) -> Tensor:
        """Go over all rows: once for the sums, and where gradients are wanted once more."""
        result, (own_sum, goal_sum) = _sums(student, teacher)
        goal = precise(teacher.states)

        def slopes(scores: Tensor, start: int, stop: int) -> Tensor:
            given = scores_of(teacher, goal, start, stop)[0].sub_(goal_sum[:, None]).exp_()
            return scores.sub_(own_sum[:, None]).exp_().sub_(given).div_(max(1, len(scores)))

        if wanted:
            ctx.save_for_backward(*gradients(student, inputs, ctx.needs_input_grad[3], slopes))
        return result

    @staticmethod
    def backward(ctx: Any, *above: Tensor) -> tuple[Tensor | None, ...]:
        """Scale what `forward` found."""
        return None, None, None, *(gradient * above[0].to(gradient) for gradient in ctx.saved_tensors)


def _sums(student: Predictor, teacher: Predictor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Return the mean divergence, and of both models the logarithms (n,) of the sums of the scores' exponentials."""
    own, goal = precise(student.states), precise(teacher.states)
    own_sum, goal_sum, apart = LogSum(own), LogSum(goal), own.new_zeros(len(own))
    for start, stop in student.tiles():
        scores, goals = scores_of(student, own, start, stop)[0], scores_of(teacher, goal, start, stop)[0]
        differences = goals - scores
        own_sum.add(scores)
        shrunk, weights = goal_sum.add(goals)
        apart = apart * shrunk + torch.linalg.vecdot(weights, differences)
    found = own_sum.value(), goal_sum.value()
    # Of a batch without predicted tokens the mean is 0, not NaN.
    total = (apart / goal_sum.total + found[0] - found[1]).sum()
    return total / max(1, len(own)), found
