"""Viterbi search for trellis codes in plain torch, on any device: all rows of a batch at once.

A path over the states, one step for each axis, must end in the state that it began in. Every state can be tried as
that one (`places` is 0). Or else a path that is free at both ends leads over a stretch before the seam and then once
around; where it comes back to a state of that stretch, it is closed; where not, some of its states are good guesses for
the best one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .trellis_costs import AXES_BETWEEN_RENEWALS, HIGHEST, LOWEST, Ring

_BATCH_BYTES = 1 << 28
_UNREACHABLE = (1 << 15) - 1
_NEVER = 1 << 62


def search(points: Tensor, ring: Ring, lead: int, places: int) -> Tensor:
    """Return the state windows (V, n), int32, of the best closed paths found for points (V, n), int16.

    Args:
        points: rows in units of the axes.
        ring: how these are counted.
        lead: over so many axes a path leads before it goes around.
        places: where to force paths that do not close; 0: try every state.
    """
    num_states, axes = len(ring.values), points.shape[1]
    per_row = (lead + axes) * (num_states >> int(ring.bits.min())) + 16 * num_states
    walk = _Walk(ring, points.device)
    found = [
        _every_state(chunk, walk) if places == 0 else _from_places(chunk, walk, lead, places)
        for chunk in points.int().split(max(1, _BATCH_BYTES // per_row))
    ]
    return torch.cat(found)


def _every_state(points: Tensor, walk: _Walk) -> Tensor:
    """Try every state, the most promising first, until no ring through another can cost less than the best one."""
    axes = points.shape[1]
    bounds, _ = walk(points, 0, axes, None)
    least = bounds.new_full((len(points),), _NEVER)
    windows = points.new_zeros(points.shape)
    while True:
        bound, start = _first_least(bounds)
        rows = (bound < least).nonzero()[:, 0]
        if not len(rows):
            return windows
        bounds.scatter_(1, start[:, None], _NEVER)
        _lap(points, walk, 0, rows, start[rows], least, windows)


def _from_places(points: Tensor, walk: _Walk, lead: int, places: int) -> Tensor:
    """Walk once around after a lead. Where the path does not close, force it to at some places, and take the best."""
    axes = points.shape[1]
    first = (axes - lead) % axes
    costs, back = walk(points, first, lead + axes, None)
    path = walk.trace(first, back, _first_least(costs)[1])
    windows = points.new_zeros(points.shape)
    # The last step from which on a lap ends in the state that it began in; 0: there is none.
    since = ((path[:, :lead] == path[:, axes:]) * torch.arange(1, lead + 1, device=points.device)).amax(1)
    if places == 1:
        # What a lap from the seam would find can mostly be read off, as the paths to all states were one there.
        start = path[:, lead - 1]
        again = walk.trace(first, back, start.long())
        reads_off = (since == 0) & (again[:, lead - 1] == start)
        path = torch.where(reads_off[:, None], again, path)
        since = since.masked_fill(reads_off, lead)
    rows = since.nonzero()[:, 0]
    later = since[rows, None] + torch.arange(axes, device=points.device)
    windows[rows[:, None], (first + later) % axes] = path[rows].gather(1, later)
    rows = (since == 0).nonzero()[:, 0]
    least = costs.new_full((len(points),), _NEVER)
    for place in range(places if len(rows) else 0):
        step = lead - 1 if places == 1 else (lead + (2 * place + 1) * axes // places) // 2
        _lap(points, walk, (first + step + 1) % axes, rows, path[rows, step].long(), least, windows)
    return windows


def _lap(points: Tensor, walk: _Walk, first: int, rows: Tensor, start: Tensor, least: Tensor, windows: Tensor) -> None:
    """Walk some rows once around from `start` and back to it; keep what costs less than `least`, with its cost."""
    axes = points.shape[1]
    costs, back = walk(points[rows], first, axes, start)
    total = costs.gather(1, start[:, None])[:, 0]
    path = walk.trace(first, back, start).roll(first, 1)
    better = total < least[rows]
    least[rows[better]] = total[better]
    windows[rows[better]] = path[better]


def _first_least(costs: Tensor) -> tuple[Tensor, Tensor]:
    """Return the least cost of each row (V,), and the first state that has it."""
    least = costs.amin(1)
    # `argmin` would not promise the first of equals, which the compiled search takes.
    ranks = torch.arange(costs.shape[1], device=costs.device).expand_as(costs)
    return least, ranks.masked_fill(costs > least[:, None], costs.shape[1]).amin(1)


class _Walk:
    """Walks over the axes of rows, and back."""

    def __init__(self, ring: Ring, device: torch.device) -> None:
        self.bits: list[int] = ring.bits.tolist()
        self.shifts: list[int] = ring.shifts.tolist()
        self.num_states = len(ring.values)
        self.ring, self.device = ring, device

    def __call__(self, points: Tensor, first: int, steps: int, start: Tensor | None) -> tuple[Tensor, list[Tensor]]:
        """Walk `steps` axes cyclically from axis `first`, from any state or from `start` (V,).

        Returns the costs of all states at the end (V, states), int64, and the branches that were chosen at each step.
        """
        rows, axes = points.shape
        taken = torch.zeros(rows, dtype=torch.int64, device=self.device)
        lowest = LOWEST if start is None else _UNREACHABLE
        cost = torch.full((rows, self.num_states), lowest, dtype=torch.int32, device=self.device)
        if start is not None:
            cost.scatter_(1, start[:, None], LOWEST)
        back = []
        for step in range(steps):
            if step and step % AXES_BETWEEN_RENEWALS == 0:
                more = cost.amin(1) - LOWEST
                cost -= more[:, None]
                taken += more
            axis = (first + step) % axes
            best, choice = self._choose(cost.view(rows, 1 << self.bits[axis], -1))
            back.append(choice)
            error = self._errors(points[:, axis], axis).view(rows, -1, 1 << self.bits[axis])
            cost = (best.clamp(max=HIGHEST)[:, :, None] + error).view(rows, -1)
        return cost + taken[:, None], back

    @staticmethod
    def _choose(candidates: Tensor) -> tuple[Tensor, Tensor]:
        best, choice = candidates[:, 0], torch.zeros_like(candidates[:, 0], dtype=torch.uint8)
        # `min` over the dimension would not promise the first of equals, which the compiled search takes.
        for branch in range(1, candidates.shape[1]):
            other = candidates[:, branch] < best
            best = torch.where(other, candidates[:, branch], best)
            choice = choice.masked_fill(other, branch)
        return best, choice

    def _errors(self, points: Tensor, axis: int) -> Tensor:
        """Return what the values of all states cost (V, states) where points (V,) are on an axis."""
        shift = self.shifts[axis]
        difference = points[:, None] - self.ring.axis_values(axis).to(self.device)
        if shift:
            difference = difference.clamp(-(32767 >> shift), 32767 >> shift) << shift
        return (difference * difference) >> 16

    def trace(self, first: int, back: list[Tensor], state: Tensor) -> Tensor:
        """Return the states (V, steps), int32, after each step of the best paths that end in `state` (V,)."""
        steps = len(back)
        path = torch.empty(len(state), steps, dtype=torch.int32, device=self.device)
        for step in range(steps - 1, -1, -1):
            bits = self.bits[(first + step) % len(self.bits)]
            path[:, step] = state
            group = state >> bits
            state = back[step].gather(1, group[:, None])[:, 0].long() * (self.num_states >> bits) + group
        return path
