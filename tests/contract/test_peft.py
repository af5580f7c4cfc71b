"""PEFT on compact models: LoRA, and an embedding that is trained as a copy on both sides of a tied model."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

import hf_compact_embeddings as hce

from ..cases import Case, compress_tiny, for_each_method
from ..tiny_models import tiny_inputs
from ..tools import assert_same_outputs, assert_same_state, outputs_of

peft = pytest.importorskip("peft", reason="peft comes with the test extra")

pytestmark = pytest.mark.filterwarnings("ignore:.*checkpointing.*:FutureWarning")

# Architecture: the linear layers that get LoRA weights, and the name of the table's module.
TARGETS = {"llama": (["q_proj", "v_proj"], "embed_tokens"), "bert": (["query", "value"], "word_embeddings")}
for_architectures = pytest.mark.parametrize("architecture", TARGETS)


def lora(architecture: str, **options) -> peft.LoraConfig:
    return peft.LoraConfig(r=2, target_modules=TARGETS[architecture][0], init_lora_weights=False, **options)


def train_a_little(model, steps: int = 2) -> None:
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        model(**tiny_inputs(model)).logits.square().mean().backward()
        optimizer.step()


@for_each_method("project")
@for_architectures
def test_lora_adapters(architecture: str, case: Case, tmp_path: Path) -> None:
    _, compact = compress_tiny(architecture, case)
    base = copy.deepcopy(compact)
    adapted = peft.get_peft_model(compact, lora(architecture))
    before = copy.deepcopy(compact.get_input_embeddings().state_dict())
    train_a_little(adapted)
    table = compact.get_input_embeddings().state_dict()
    assert all(torch.equal(tensor, before[name]) for name, tensor in table.items()), "the table is frozen"
    adapted.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path).eval()
    assert_same_outputs(loaded, adapted.eval())
    merged = loaded.merge_and_unload()
    assert_same_outputs(merged, adapted, 1e-4)
    assert type(merged) is type(base)
    assert outputs_of(merged)[0].ne(outputs_of(base)[0]).any()


@for_each_method("project", "dense")
@for_architectures
def test_a_trained_copy_serves_look_up_and_head(architecture: str, case: Case, tmp_path: Path) -> None:
    _, compact = compress_tiny(architecture, case)
    base = copy.deepcopy(compact)
    adapted = peft.get_peft_model(compact, lora(architecture, modules_to_save=[TARGETS[architecture][1]]))
    wrapper = adapted.base_model.model.get_input_embeddings()
    trained, original = wrapper.modules_to_save["default"], wrapper.original_module
    train_a_little(adapted)
    assert_same_state(original, base.get_input_embeddings())
    for name, parameter in trained.named_parameters():
        assert not torch.equal(parameter, original.get_parameter(name)), name

    # Both sides must act as a plain model does that has the trained rows in its table.
    merged = copy.deepcopy(adapted).merge_and_unload().eval()
    assert merged.get_input_embeddings()(torch.arange(5)).equal(trained(torch.arange(5)))
    assert_same_outputs(adapted.eval(), hce.decompress(merged), 1e-4)
    # With the adapter off, both sides read the original again.
    with adapted.disable_adapter():
        assert_same_outputs(adapted, base)

    adapted.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path).eval()
    assert_same_outputs(loaded, adapted)
    merged.save_pretrained(tmp_path / "merged")
    again = type(merged).from_pretrained(tmp_path / "merged")
    trained.round_to_storage()
    assert_same_state(again.get_input_embeddings(), trained)


@for_each_method("project")
def test_head_and_look_up_get_gradients_through_the_wrapper(case: Case) -> None:
    _, compact = compress_tiny("llama", case)
    adapted = peft.get_peft_model(compact, lora("llama", modules_to_save=["embed_tokens"]))
    trained = adapted.base_model.model.get_input_embeddings().modules_to_save["default"]
    hidden = torch.randn(2, 24)
    head = adapted.base_model.model.get_output_embeddings()
    assert torch.equal(head(hidden), trained(hidden, project=True))
    head(hidden).square().sum().backward()
    assert all(parameter.grad is not None for parameter in trained.parameters())
