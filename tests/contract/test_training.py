"""Compact models train: Trainer, resuming, gradient checkpointing, mixed precision."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, PreTrainedModel, Trainer, TrainingArguments

from ..cases import Case, compress_tiny, for_each_method, for_pairs
from ..tiny_models import tiny_inputs
from ..tools import assert_same_state

# Transformers renames gradient checkpointing; the old name is the one that all its releases know.
pytestmark = pytest.mark.filterwarnings("ignore:.*checkpointing.*:FutureWarning")


def rows(count: int = 16, columns: int = 6) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 120, (count, columns), generator=generator)
    ids[:, -1] = 0  # a row that is stored exactly
    return [{"input_ids": row, "labels": int(row[0] > 60)} for row in ids]


def train(model: PreTrainedModel, folder: Path, resume: str | None = None, **options: Any) -> Trainer:
    arguments: dict[str, Any] = {
        "output_dir": str(folder),
        "max_steps": 4,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "use_cpu": True,
        "disable_tqdm": True,
        "save_strategy": "no",
        "seed": 3,
        **options,
    }
    trainer = Trainer(model=model, args=TrainingArguments(**arguments), train_dataset=rows())
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def classifier(case: Case, **options: Any) -> PreTrainedModel:
    _, compact = compress_tiny("bert", case, head="BertForSequenceClassification", **options)
    return compact


@for_each_method("project")
def test_trainer_moves_the_table_and_keeps_the_codes(case: Case, tmp_path: Path) -> None:
    model = classifier(case)
    before = copy.deepcopy(model.state_dict())
    trainer = train(model, tmp_path)
    path = model.input_table_path + "."
    for name, tensor in model.state_dict().items():
        if name.startswith(path):
            assert torch.equal(tensor, before[name]) != tensor.is_floating_point(), name
    trainer.save_model(tmp_path / "saved")
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved")
    stored = copy.deepcopy(model).eval()
    stored.get_input_embeddings().round_to_storage()
    assert_same_state(loaded, stored)


@for_each_method("project")
def test_resuming_ends_where_training_without_a_break_ends(case: Case, tmp_path: Path) -> None:
    # Saved in float32, a checkpoint loses nothing.
    start = classifier(case, storage_dtype="float32")
    whole, resumed = copy.deepcopy(start), copy.deepcopy(start)
    train(whole, tmp_path / "run", save_strategy="steps", save_steps=2)
    assert (tmp_path / "run" / "checkpoint-2" / "modeling_compact.py").exists()
    train(resumed, tmp_path / "again", resume=str(tmp_path / "run" / "checkpoint-2"))
    assert_same_state(resumed, whole)


@for_each_method("project")
def test_resuming_reads_rounded_tables(case: Case, tmp_path: Path) -> None:
    start = classifier(case)
    whole, resumed = copy.deepcopy(start), copy.deepcopy(start)
    train(whole, tmp_path / "run", save_strategy="steps", save_steps=2)
    train(resumed, tmp_path / "again", resume=str(tmp_path / "run" / "checkpoint-2"))
    for name, tensor in resumed.state_dict().items():
        assert tensor.dtype == whole.state_dict()[name].dtype
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor, whole.state_dict()[name], atol=1e-2, rtol=1e-2)


@for_pairs("project", architectures=["bert", "llama", "t5", "gemma3_text", "gpt2", "modernbert", "bart"])
def test_gradient_checkpointing_gives_the_same_gradients(architecture: str, case: Case) -> None:
    _, plain = compress_tiny(architecture, case)
    saving = copy.deepcopy(plain)
    saving.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    for model in (plain, saving):
        # Training mode turns checkpointing on; dropout would make the two differ.
        model.train()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
            elif isinstance(getattr(module, "dropout", None), float):
                module.dropout = 0.0
        model(**tiny_inputs(model)).logits.square().mean().backward()
    assert saving.is_gradient_checkpointing
    for (name, one), (_, other) in zip(plain.named_parameters(), saving.named_parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None), name
        if one.grad is not None:
            torch.testing.assert_close(one.grad, other.grad, atol=1e-6, rtol=1e-4)


@for_each_method("project")
def test_trainer_with_gradient_checkpointing_and_bfloat16(case: Case, tmp_path: Path) -> None:
    model = classifier(case)
    before = copy.deepcopy(model.get_input_embeddings().state_dict())
    trainer = train(model, tmp_path, gradient_checkpointing=True, bf16=True)
    assert trainer.state.global_step == 4
    assert model.dtype == torch.float32
    after = model.get_input_embeddings().state_dict()
    assert all(torch.equal(after[name], before[name]) != after[name].is_floating_point() for name in after)


@for_each_method("project")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_tied_model_trains_under_autocast(dtype: torch.dtype, case: Case) -> None:
    _, compact = compress_tiny("bert", case)
    with torch.autocast("cpu", dtype=dtype):
        loss = compact(**tiny_inputs(compact), labels=tiny_inputs(compact)["input_ids"]).loss
    loss.backward()
    for name, parameter in compact.get_input_embeddings().named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.dtype == torch.float32


@for_each_method("project")
def test_input_gradients_can_be_asked_for(case: Case) -> None:
    """PEFT and frozen models under gradient checkpointing hook the input embeddings."""
    _, compact = compress_tiny("bert", case)
    compact.requires_grad_(False)
    compact.enable_input_require_grads()
    hidden = []
    compact.get_input_embeddings().register_forward_hook(lambda *call: hidden.append(call[-1]))
    compact(**tiny_inputs(compact))
    assert hidden[0].requires_grad
    compact.disable_input_require_grads()
