"""Training of an experiment's model: its curve, its best checkpoint, and what lies between it and the fit."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

import hf_compact_embeddings as hce

from ..common.device import torch_device
from .experiment import Experiment
from .scores import Scores


class Curve(TrainerCallback):
    """Scores the model on the validation part from time to time, and keeps the best one, as it would be saved."""

    def __init__(self, compact: PreTrainedModel, scores: Scores, folder: Path, every: int) -> None:
        """Go on with what an earlier run has noted."""
        self.compact, self.scores, self.folder, self.every = compact, scores, folder, every
        self.path = folder / "curve.json"
        self.points: list[dict[str, float]] = json.loads(self.path.read_text()) if self.path.exists() else []
        self.started = time.time()
        if not self.points:
            self.add(0)

    def add(self, step: int) -> None:
        """Note a score, and keep the model if it is the best so far."""
        self.points = [point for point in self.points if point["step"] < step]
        best = max((point["validation"] for point in self.points), default=float("-inf"))
        self.compact.save_pretrained(self.folder / "now")
        value = self.scores.score(load(self.folder / "now", self.scores))
        self.points.append({"step": step, "validation": value, "seconds": round(time.time() - self.started)})
        if value > best:
            self.compact.save_pretrained(self.folder / "best")
        self.path.write_text(json.dumps(self.points))
        print(json.dumps(self.points[-1]), flush=True)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Score every so many steps, and at the end."""
        if state.global_step % self.every == 0 or state.global_step == state.max_steps:
            self.add(state.global_step)


def load(folder: Path, scores: Scores) -> PreTrainedModel:
    """Load a checkpoint to where models are scored."""
    return scores.auto_class.from_pretrained(folder).to(torch_device())


def with_layers_of(fit: PreTrainedModel, learned: PreTrainedModel) -> PreTrainedModel:
    """Return a fit with the layers of a model that has learned already."""
    table = learned.get_input_embeddings()
    path = next(name for name, module in learned.named_modules() if module is table) + "."
    layers = {name: value for name, value in learned.state_dict().items() if not name.startswith(path)}
    fit.load_state_dict({**fit.state_dict(), **layers})
    return fit


def train(
    compact: PreTrainedModel,
    dense: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: list[Any],
    experiment: Experiment,
    folder: Path,
    callbacks: list[TrainerCallback],
) -> None:
    """Calibrate the model in place; interrupted, it goes on from its last checkpoint."""
    on_cpu = not torch.cuda.is_available()
    hce.calibrate(
        compact,
        teacher=dense,
        texts=texts,
        tokenizer=tokenizer,
        trains=experiment.trains,
        losses=experiment.losses,
        max_length=experiment.max_length,
        table_learning_rate=experiment.table_learning_rate,
        callbacks=callbacks,
        resume_from_checkpoint=True,
        args={
            "output_dir": str(folder / "run"),
            "max_steps": experiment.steps,
            "per_device_train_batch_size": experiment.batch,
            "learning_rate": experiment.learning_rate,
            "lr_scheduler_type": "linear",
            "warmup_steps": min(100, experiment.steps // 10),
            "train_sampling_strategy": "group_by_length" if experiment.words else "random",
            "save_steps": experiment.eval_steps,
            "save_total_limit": 2,
            "logging_steps": min(50, experiment.eval_steps),
            "bf16": experiment.bf16,
            "use_cpu": on_cpu,
            # Batches are put together while the GPU works.
            "dataloader_num_workers": 0 if on_cpu else 3,
            "disable_tqdm": True,
            "report_to": "none",
            "seed": experiment.seed,
        },
    )


def loss_by_step(folder: Path) -> dict[str, float]:
    """Return the training loss, each a mean since the one before, as Trainer noted it in its last checkpoint."""
    states = {int(path.parent.name.rpartition("-")[2]): path for path in folder.glob("run/*/trainer_state.json")}
    if not states:
        return {}
    state = json.loads(states[max(states)].read_text())
    return {str(entry["step"]): round(float(entry["loss"]), 4) for entry in state["log_history"] if "loss" in entry}


def part_of_the_way(
    fit: PreTrainedModel, folder: Path, shares: tuple[float, ...], scores: Scores
) -> tuple[PreTrainedModel, dict[str, float]]:
    """Return the best of the models on the way from the fit to the best and to the last checkpoint, and all scores."""
    found: dict[str, float] = {}
    best = fit
    for name, path in (("best", "best"), ("last", "now")):
        end = load(folder / path, scores)
        for share in shares:
            part = hce.training.blend(fit, end, share)
            value = scores.score(part)
            if value > max(found.values(), default=float("-inf")):
                best = part
            found[f"{name}, {share}"] = value
    return best, found
