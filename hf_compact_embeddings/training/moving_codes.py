"""Codes that move in calibration: rows are trained beside their codes, and coded anew from time to time."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast, gather, pad_across_processes, reduce
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.utils import logging

from ..fitting import recoder_of
from ..fitting.recoding import movable_rows, recode
from ..modeling.errors import CompactConfigError
from ..modeling.structure import CompactEmbedding

logger = logging.get_logger(__name__)

MOVING_ROWS = "moving_rows.safetensors"
# How long the size of a row's gradients is remembered, in steps that the row takes part in.
_MEMORY = 0.99


class MovingCodes(TrainerCallback):
    """Trains a row for each token, and takes the codes that come nearest to it every so many steps.

    The rows are the goal of the codes, and no part of the model. What reaches a looked-up vector as a gradient moves
    the token's row, as if coding changed nothing (a straight-through estimate); so do the scores of an output head
    that is tied to the table. The size of a row's step follows the row's own gradients, as in Adam, but with one
    number a row. Kept is how far each row lies from what its codes stand for: so rows move with the floats, and
    choosing codes does not undo what the floats have learned.

    It costs a float32 table and two floats a row, in memory and in each checkpoint, in the main process alone: it
    takes the gradients of all, chooses the codes, and sends them to the others. A step writes only the rows that its
    texts name. With a tied head it writes all rows, has their gradient in memory (one more table in each process), and
    takes a product as large as that of a dense head.
    """

    def __init__(self, compact: PreTrainedModel, teacher: PreTrainedModel | None, every: int, rate: float) -> None:
        """Start from the teacher's rows, or without one from those that the codes stand for.

        Args:
            compact: the model.
            teacher: the original.
            every: steps from one choice of codes to the next.
            rate: how far a row moves in a step, as a share of the root mean square of all.
        """
        structure = compact.compact_embedding
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise CompactConfigError(f"`recode_steps` is {every!r}, but it must be a whole number above 0.")
        if recoder_of(structure) is None:
            raise CompactConfigError(
                f"`recode_steps` is {every}, but {structure.config.method!r} with these options has no codes that "
                "could move."
            )
        self.compact, self.every, self.rate = compact, every, rate
        self._share: float | None = None
        self._seen: list[tuple[Tensor, Tensor]] = []
        self._scored: Tensor | None = None
        self._movable = movable_rows(structure)
        self._state: dict[str, Tensor] | None = None
        if PartialState().is_main_process:
            rows = _first_rows(structure, teacher)
            size = rows.norm() / max(1, rows.numel()) ** 0.5
            self._state = {
                "offsets": rows - _decoded(structure).cpu(),
                "size": size.reshape(1),
                "power": torch.zeros(len(rows)),
                "steps": torch.zeros(len(rows)),
            }

    # Gradients.

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Collect the gradients of all vectors that are looked up."""
        handle = self.compact.compact_embedding.register_forward_hook(self._watch, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()
            self._seen.clear()
            self._scored = None

    def _watch(self, module: Any, inputs: tuple[Any, ...], options: Mapping[str, Any], output: Tensor) -> None:
        if not output.requires_grad:
            return
        if options.get("project", len(inputs) > 1 and inputs[1]):
            output.register_hook(functools.partial(self._collect_scores, inputs[0].detach().flatten(0, -2)))
            return
        given = options.get("scale", inputs[2] if len(inputs) > 2 else None)
        scale = module.scale if given is None else given
        ids = inputs[0].detach().reshape(-1).long()
        kept = self._movable[ids.clamp(max=len(self._movable) - 1)] & (ids < len(self._movable))
        output.register_hook(functools.partial(self._collect, ids, kept, scale))

    def _collect(self, ids: Tensor, kept: Tensor, scale: float, gradient: Tensor) -> None:
        self._seen.append((ids[kept], gradient.detach().flatten(0, -2)[kept].float() * scale))

    def _collect_scores(self, hidden: Tensor, gradient: Tensor) -> None:
        with torch.autocast(hidden.device.type, enabled=False):
            rows = gradient.detach().flatten(0, -2)[:, : len(self._movable)].float().T @ hidden.float()
        self._scored = rows if self._scored is None else self._scored.add_(rows)

    def _gathered(self) -> tuple[Tensor, Tensor]:
        """Return the ids (n,) of the rows that have gradients, and these (n, D), over all processes; forget them."""
        state, width = PartialState(), self.compact.compact_embedding.embedding_dim
        ids = torch.cat([self._movable.new_empty(0).long(), *(ids for ids, _ in self._seen)])
        sums = torch.cat([torch.empty(0, width, device=ids.device), *(part for _, part in self._seen)])
        self._seen.clear()
        ids, sums = _summed(ids, sums)
        if state.num_processes > 1:
            ids = gather(pad_across_processes(ids, pad_index=-1))
            sums = gather(pad_across_processes(sums))
            ids, sums = _summed(ids[ids >= 0], sums[ids >= 0] / state.num_processes)
        if self._scored is not None:
            scored = reduce(self._scored, "mean").index_add_(0, ids, sums)
            self._scored = None
            ids = self._movable.nonzero().squeeze(1)
            sums = scored[ids]
        return ids, sums

    @torch.no_grad()
    def _step(self, rate: float, scaler: Any) -> None:
        """Move the rows whose gradients were collected."""
        ids, sums = self._gathered()
        if self._state is None or not len(ids):
            return
        sums /= 1.0 if scaler is None else scaler.get_scale()
        if not bool(sums.isfinite().all()):
            return  # The optimizer leaves such a step out, or the loss stops the run.
        offsets, power, steps = self._state["offsets"], self._state["power"], self._state["steps"]
        steps[ids] += 1
        power[ids] = _MEMORY * power[ids] + (1 - _MEMORY) * sums.square().mean(1)
        size = (power[ids] / (1 - _MEMORY ** steps[ids])).sqrt().clamp(min=torch.finfo(torch.float32).tiny)
        offsets[ids] -= sums.mul_((rate * self._state["size"] / size).unsqueeze(1))

    # Codes.

    @torch.no_grad()
    def _recode(self, step: int) -> None:
        structure = self.compact.compact_embedding
        moved = torch.zeros(1, device=structure.device)
        if self._state is not None:
            rows = _decoded(structure) + self._state["offsets"]
            moved += recode(structure, rows)
            self._state["offsets"] = rows - _decoded(structure)
        if PartialState().num_processes > 1:
            moved = broadcast(moved)
            for codes in structure.buffers():
                codes.copy_(broadcast(codes.clone()))
        self._share = float(moved) / max(1, int(self._movable.sum()))
        logger.info("Step %d: %d rows (%.1f %%) have other codes.", step, int(moved), 100 * self._share)

    def news(self) -> dict[str, float]:
        """Return what to log: the share of rows that the last choice moved, once."""
        share, self._share = self._share, None
        return {} if share is None else {"codes_moved": round(share, 6)}

    # What Trainer calls.

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Put the rows where the table is."""
        device = self.compact.compact_embedding.device
        self._seen.clear()
        self._scored = None
        self._movable = self._movable.to(device)
        if self._state is not None:
            self._state = {name: value.to(device) for name, value in self._state.items()}

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, optimizer: Any = None, **_: Any
    ) -> None:
        """Move rows on the schedule of the learning rates."""
        group = optimizer.param_groups[0]
        share = group["lr"] / (group.get("initial_lr") or group["lr"] or 1.0)
        self._step(self.rate * share, getattr(optimizer, "scaler", None))

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Choose codes every so many steps, and at the end, where the rates are too low for floats to follow anyway."""
        if state.global_step % self.every == 0 or state.global_step >= state.max_steps:
            self._recode(state.global_step)

    # Checkpoints.

    def save(self, folder: Path) -> None:
        """Write the rows beside a checkpoint."""
        if self._state is not None:
            save_file({name: value.cpu() for name, value in self._state.items()}, folder / MOVING_ROWS)

    def load(self, folder: Path) -> None:
        """Go on with the rows of a checkpoint."""
        path = folder / MOVING_ROWS
        if self._state is not None and path.is_file():
            self._state = {name: value.to(self._movable.device) for name, value in load_file(path).items()}


def _summed(ids: Tensor, gradients: Tensor) -> tuple[Tensor, Tensor]:
    """Return the different ids (n,), and the sums (n, D) of the gradients (m, D) of each."""
    different, places = ids.unique(return_inverse=True)
    sums = torch.zeros(len(different), gradients.shape[1], device=ids.device)
    return different, sums.index_add_(0, places, gradients)


@torch.no_grad()
def _decoded(structure: CompactEmbedding) -> Tensor:
    """Return the rows that can be coded as they are read now (coded_rows, D), float32."""
    return structure.dense()[: structure.coded_rows].float()


@torch.no_grad()
def _first_rows(structure: CompactEmbedding, teacher: PreTrainedModel | None) -> Tensor:
    """Return a copy of the rows to start from (coded_rows, D), float32, on the CPU."""
    if teacher is None:
        return _decoded(structure).cpu()
    table = teacher.get_input_embeddings()
    rows = table.dense() if isinstance(table, CompactEmbedding) else table.weight
    if rows.shape != (structure.num_embeddings, structure.embedding_dim):
        raise CompactConfigError(
            f"`teacher` has a table {tuple(rows.shape)}, but `compact` stands for "
            f"{(structure.num_embeddings, structure.embedding_dim)}: with `recode_steps` they must be the same."
        )
    return rows[: structure.coded_rows].detach().to("cpu", torch.float32, copy=True)
