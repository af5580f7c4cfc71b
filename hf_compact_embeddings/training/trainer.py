"""The Trainer of calibration: losses against a teacher, learning rates of their own, checkpoints that lose nothing."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel, TrainerState
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, TrainOutput

from ..finetuning.trainer import MeanLossTrainer
from ..modeling.errors import CompactEmbeddingsError
from ..transformers_internals import checkpoint_function, prepared_inputs, set_checkpoint_function
from .losses import Outputs, Target, need_whole_scores, predicts, run, target_of, total_loss
from .rows import split_batch

# The tables' floats as they are in training: the model file beside it holds them rounded to `storage_dtype`.
EXACT_TABLE = "table_in_training.safetensors"
_STATE_FILE = "trainer_state.json"


class CalibrationError(CompactEmbeddingsError):
    """Calibration had to stop."""


class CalibrationTrainer(MeanLossTrainer):
    """Trains a compact model to say what its teacher says."""

    optimizer: Any

    def __init__(
        self,
        *arguments: Any,
        losses: Mapping[str, float],
        teacher: PreTrainedModel | None,
        table_learning_rate: float,
        **options: Any,
    ) -> None:
        """Take what Trainer takes, and beside it what calibration needs.

        Args:
            arguments: of Trainer.
            losses: weights by name.
            teacher: the original; None where the rows hold its outputs, or nothing is compared.
            table_learning_rate: of the compact table, as a share of the root mean square of each of its tensors;
                `args.learning_rate` is for everything else.
            options: of Trainer.
        """
        super().__init__(*arguments, **options)
        self.losses = losses
        self.teacher = None if teacher is None else teacher.to(self.args.device).eval()
        self.table_learning_rate = table_learning_rate
        self._logged: dict[str, Tensor] = {}
        self._count = 0
        self._whole_scores: bool | None = None

    def train(self, resume_from_checkpoint: str | bool | None = None, *arguments: Any, **options: Any) -> TrainOutput:
        """Train; where a checkpoint has all steps behind it, only load it: Trainer would take one step more."""
        if isinstance(resume_from_checkpoint, str) and _is_whole(Path(resume_from_checkpoint)):
            done = TrainerState.load_from_json(str(Path(resume_from_checkpoint) / _STATE_FILE))
            if 0 < self.args.max_steps <= done.global_step:
                self._load_from_checkpoint(resume_from_checkpoint)
                self.state = done
                return TrainOutput(done.global_step, 0.0, {})
        try:
            return super().train(resume_from_checkpoint, *arguments, **options)
        finally:
            for layer in _checkpointed_layers(self.compact):
                checkpoint = checkpoint_function(layer)
                if isinstance(checkpoint, _CheckpointInEvaluation):
                    set_checkpoint_function(layer, checkpoint.native)

    @property
    def compact(self) -> PreTrainedModel:
        """The model without what a launcher has wrapped around it."""
        return self.accelerator.unwrap_model(self.model)

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Return the weighted losses of a batch; raise if they are not finite."""
        owner = self.compact
        # The teacher's outputs have no dropout in them, so the student's must not either.
        owner.eval()
        if self.args.gradient_checkpointing:
            _checkpoint_without_dropout(owner)
        fields, positions, labels, target = split_batch(inputs)
        mask = fields["attention_mask"]
        shown = positions if predicts(self.losses) else None
        whole_scores = shown is None or self._need_whole_scores(owner, fields)
        student = run(model, owner, fields, shown, whole_scores)
        if target is None:
            target = self._ask_teacher(fields, mask, shown, whole_scores)
        loss, parts = total_loss(student, target, mask, labels, self.losses)
        if not bool(torch.isfinite(loss)):
            raise CalibrationError(f"The loss is {loss.item()} after step {self.state.global_step:,}.")
        if torch.is_grad_enabled():
            self._note(parts)
        return (loss, student) if return_outputs else loss

    def _need_whole_scores(self, owner: PreTrainedModel, fields: dict[str, Tensor]) -> bool:
        """Tell whether all scores must be held; it is found out once."""
        if self._whole_scores is None:
            # Outside of its modules' calls a sharded model has no rows.
            self._whole_scores = self.is_fsdp_enabled or need_whole_scores(owner, self.teacher, fields)
        return self._whole_scores

    @torch.no_grad()
    def _ask_teacher(
        self, fields: dict[str, Tensor], mask: Tensor, positions: Tensor | None, whole_scores: bool
    ) -> Target:
        if self.teacher is None:
            return Target()
        needed = positions if "logits" in self.losses else None
        outputs: Outputs = run(self.teacher, self.teacher, fields, needed, whole_scores)
        return target_of(outputs, mask, self.losses)

    def _note(self, parts: Mapping[str, Tensor]) -> None:
        if len(parts) > 1:
            for name, value in parts.items():
                self._logged[name] = self._logged.get(name, 0.0) + value.detach()
            self._count += 1

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log each loss beside their sum; of this process, where there are several."""
        if "loss" in logs and self._count:
            logs |= {f"loss_{name}": round(float(total) / self._count, 6) for name, total in self._logged.items()}
            self._logged, self._count = {}, 0
        super().log(logs, start_time)

    def prediction_step(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor, None, None]:
        """Return the losses of a held-out batch."""
        inputs = prepared_inputs(self, inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            return self.compute_loss(model, inputs).detach(), None, None

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Give each tensor of the tables a learning rate that suits its size, and no weight decay.

        Codebooks, scales and factors differ in size by orders of magnitude, so that no one rate suits them.
        """
        if self.optimizer is None:
            chosen = self.model if model is None else model
            tables = self.compact.compact_tables.values()
            inside = {id(parameter) for table in tables for parameter in table.parameters()}
            decaying = set(self.get_decay_parameter_names(chosen))
            groups: list[dict[str, Any]] = []
            others: dict[bool, list[torch.nn.Parameter]] = {True: [], False: []}
            for name, parameter in chosen.named_parameters():
                if parameter.requires_grad and id(parameter) in inside:
                    rate = self.table_learning_rate * root_mean_square(parameter)
                    groups.append({"params": [parameter], "lr": rate, "weight_decay": 0.0})
                elif parameter.requires_grad:
                    others[name in decaying].append(parameter)
            groups += [
                {"params": group, "weight_decay": self.args.weight_decay if decays else 0.0}
                for decays, group in others.items()
                if group
            ]
            optimizer_class, options = self.get_optimizer_cls_and_kwargs(self.args, chosen)
            self.optimizer = optimizer_class(groups, **options)
        return self.optimizer

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        super()._save(output_dir, state_dict)
        folder = Path(output_dir or self.args.output_dir)
        if self.args.should_save:
            # A pickle, which nothing reads and nobody should be sent.
            (folder / TRAINING_ARGS_NAME).unlink(missing_ok=True)
        if self.args.should_save and folder.name.startswith(PREFIX_CHECKPOINT_DIR):
            homes = tuple(f"{path}." for path in self.compact.compact_tables)
            state = self.compact.state_dict() if state_dict is None else state_dict
            exact = {
                name: tensor.detach().cpu().contiguous()
                for name, tensor in state.items()
                if name.startswith(homes) and tensor.is_floating_point()
            }
            save_file(exact, folder / EXACT_TABLE)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if not self.is_fsdp_enabled:
            load_exact_table(self.compact, resume_from_checkpoint)

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        self.require_finite_values()
        super()._save_checkpoint(model, trial)

    def require_finite_values(self) -> None:
        """Raise if training has broken the model."""
        broken = [name for name, value in self.compact.named_parameters() if not bool(torch.isfinite(value).all())]
        if broken:
            raise CalibrationError(
                f"After step {self.state.global_step:,} the values of {', '.join(broken[:3])} are not finite."
            )


def _checkpointed_layers(model: torch.nn.Module) -> list[torch.nn.Module]:
    layers = (module for module in model.modules() if isinstance(module, GradientCheckpointingLayer))
    return [layer for layer in layers if layer.gradient_checkpointing]


def _checkpoint_without_dropout(model: torch.nn.Module) -> None:
    """Put layers into training mode, in which alone they are checkpointed, and let them leave it before they run."""
    layer: Any
    for layer in _checkpointed_layers(model):
        layer.training = True
        native = checkpoint_function(layer)
        if not isinstance(native, _CheckpointInEvaluation):
            set_checkpoint_function(layer, _CheckpointInEvaluation(layer, native))


class _CheckpointInEvaluation:
    """What checkpoints a layer, which is in evaluation mode whenever it runs."""

    def __init__(self, layer: torch.nn.Module, native: Any) -> None:
        self.layer = layer
        self.native = native

    def __call__(self, function: Callable[..., Any], *arguments: Any) -> Any:
        def run_layer(*inputs: Any) -> Any:
            self.layer.training = False
            return function(*inputs)

        return self.native(run_layer, *arguments)


@torch.no_grad()
def root_mean_square(parameter: Tensor) -> float:
    """Return the root of the mean of the squares; 1 for a tensor of zeros, which has no size to go by."""
    return parameter.detach().float().square().mean().sqrt().item() or 1.0


@torch.no_grad()
def load_exact_table(compact: PreTrainedModel, checkpoint: str | Path) -> None:
    """Put the unrounded tables of a training checkpoint into a model."""
    file = Path(checkpoint) / EXACT_TABLE
    if file.is_file():
        exact = load_file(file)
        for path, table in compact.compact_tables.items():
            for name, parameter in table.named_parameters():
                parameter.copy_(exact[f"{path}.{name}"])


def round_tables(compact: PreTrainedModel) -> None:
    """Round all tables to values that saving and loading give back bit by bit."""
    for table in compact.compact_tables.values():
        table.round_to_storage()


def last_checkpoint(folder: str | Path) -> Path | None:
    """Return the newest checkpoint of a folder that was written to its end, if there is one."""
    found = {}
    for path in Path(folder).glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        step = path.name.rpartition("-")[2]
        if step.isdigit() and _is_whole(path):
            found[int(step)] = path
    return found[max(found)] if found else None


def _is_whole(checkpoint: Path) -> bool:
    """Tell whether Trainer finished the file that it writes last."""
    try:
        json.loads((checkpoint / _STATE_FILE).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return False
    return True
