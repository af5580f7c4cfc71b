"""save_pretrained and from_pretrained give back every bit."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path

import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification

import hf_compact_embeddings as hce
from hf_compact_embeddings.modeling.code_files import shipped_files, without_docstrings
from hf_compact_embeddings.modeling.transformers_internals import heads_of

from ..cases import Case, compress_tiny, for_each_method, for_pairs
from ..tiny_models import tiny_inputs
from ..tools import PACKAGE, assert_same_outputs, assert_same_state, storages

WEIGHTS = "model.safetensors"


@for_pairs("project")
def test_everything_comes_back_bit_by_bit(architecture: str, case: Case, tmp_path: Path) -> None:
    _, compact = compress_tiny(architecture, case)
    compact.save_pretrained(tmp_path / "one")
    loaded, info = type(compact).from_pretrained(tmp_path / "one", output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert_same_state(loaded, compact)
    assert_same_outputs(loaded, compact)
    assert loaded.dtype == compact.dtype and not loaded.training
    loaded.save_pretrained(tmp_path / "two")
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "two").iterdir())
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name


@for_pairs("project")
def test_the_file_holds_what_nbytes_counts(architecture: str, case: Case, tmp_path: Path) -> None:
    _, compact = compress_tiny(architecture, case)
    compact.save_pretrained(tmp_path)
    structure, path = compact.get_input_embeddings(), compact.input_table_path + "."
    state = load_file(tmp_path / WEIGHTS)
    ours = {name.removeprefix(path): tensor for name, tensor in state.items() if name.startswith(path)}
    assert ours.keys() == structure.state_dict().keys()
    assert sum(tensor.numel() * tensor.element_size() for tensor in ours.values()) == structure.nbytes
    for name, tensor in ours.items():
        assert tensor.dtype == structure.stored_dtype(name), name
        assert torch.equal(tensor.to(structure.state_dict()[name]), structure.state_dict()[name]), name
    total = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    assert hce.inspect(compact).model_bytes == total
    with safe_open(tmp_path / WEIGHTS, "pt") as file:
        assert file.metadata()["format"] == "pt"


@for_pairs("project", architectures=["bert", "t5", "gemma3_text"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_comes_back_bit_by_bit(
    architecture: str, dtype: torch.dtype, case: Case, tmp_path: Path
) -> None:
    _, compact = compress_tiny(architecture, case)
    # The first save may round the tables once, from the model's dtype to the storage dtype.
    compact.to(dtype).save_pretrained(tmp_path / "one")
    loaded = type(compact).from_pretrained(tmp_path / "one")
    assert loaded.dtype == dtype
    assert {parameter.dtype for parameter in loaded.get_input_embeddings().parameters()} == {dtype}
    loaded.save_pretrained(tmp_path / "two")
    one, two = load_file(tmp_path / "one" / WEIGHTS), load_file(tmp_path / "two" / WEIGHTS)
    tables = [name for name in one if name.startswith(compact.input_table_path)]
    assert tables and all(torch.equal(one[name], two[name]) for name in tables)
    assert all(one[name].dtype == two[name].dtype for name in tables)
    again = type(compact).from_pretrained(tmp_path / "two")
    assert_same_state(loaded, again)
    assert_same_outputs(loaded, again)
    if compact.get_input_embeddings().options.storage_dtype in (str(dtype).removeprefix("torch."), "float32"):
        # T5 keeps some layers in float32 when it is loaded, and `.to()` rounds Gemma's rotary buffers.
        assert_same_state(loaded.get_input_embeddings(), compact.get_input_embeddings())
        if architecture == "bert":
            assert_same_outputs(loaded, compact)


@for_each_method("project")
def test_the_dtype_of_loading_is_the_models_own(case: Case, tmp_path: Path) -> None:
    _, compact = compress_tiny("bert", case)
    compact.save_pretrained(tmp_path)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        loaded = AutoModelForMaskedLM.from_pretrained(tmp_path, dtype=dtype)
        assert {parameter.dtype for parameter in loaded.parameters()} == {dtype}
        assert all(buffer.dtype != dtype for buffer in loaded.get_input_embeddings().buffers())
        assert_same_state(loaded, copy.deepcopy(compact).to(dtype))
    assert AutoModelForMaskedLM.from_pretrained(tmp_path, device_map="cpu").dtype == torch.float32


@for_each_method("project")
@pytest.mark.parametrize("architecture", ["bert", "t5"])
def test_sharded_checkpoints(architecture: str, case: Case, tmp_path: Path) -> None:
    _, compact = compress_tiny(architecture, case)
    compact.save_pretrained(tmp_path, max_shard_size="4KB")
    assert (tmp_path / f"{WEIGHTS}.index.json").exists() and len(list(tmp_path.glob("*.safetensors"))) > 3
    loaded = type(compact).from_pretrained(tmp_path)
    assert_same_state(loaded, compact)
    assert_same_outputs(loaded, compact)


@for_each_method("project")
def test_a_checkpoint_opens_with_every_other_head(case: Case, tmp_path: Path) -> None:
    _, compact = compress_tiny("bert", case)
    compact.save_pretrained(tmp_path)
    for auto_class, head in heads_of("bert").items():
        loaded = getattr(transformers, auto_class).from_pretrained(tmp_path)
        assert type(loaded) is getattr(hce, f"Compact{head}")
        assert_same_state(loaded.get_input_embeddings(), compact.get_input_embeddings())
    base = AutoModel.from_pretrained(tmp_path)
    base.save_pretrained(tmp_path / "base")
    classifier = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=3)
    assert_same_state(classifier.get_input_embeddings(), compact.get_input_embeddings())
    assert classifier(**tiny_inputs(classifier)).logits.shape == (2, 3)


@for_each_method("project")
def test_what_a_checkpoint_says_and_carries(case: Case, tmp_path: Path) -> None:
    _, compact = compress_tiny("bert", case)
    compact.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["model_type"] == "compact-bert"
    assert config["architectures"] == ["CompactBertForMaskedLM"]
    assert config["compact_embeddings"] == {compact.input_table_path: compact.get_input_embeddings().to_dict()}
    wanted = {name: f"modeling_compact.Compact{head}" for name, head in heads_of("bert").items()}
    assert config["auto_map"] == wanted | {"AutoConfig": "modeling_compact.CompactBertConfig"}
    shipped = {path.name: path.read_bytes() for path in tmp_path.glob("*.py")}
    assert shipped == shipped_files(PACKAGE / "modeling" / "modeling_compact.py", {case.method})
    for name in shipped.keys() - {"modeling_compact.py"}:
        assert shipped[name] == without_docstrings((PACKAGE / "modeling" / name).read_bytes()), name
    assert not [path for path in tmp_path.rglob("*") if path.suffix in {".bin", ".pt", ".pkl"}]
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert loaded.to_dict() == compact.config.to_dict() | {"_name_or_path": str(tmp_path)}


@for_each_method("project", "dense")
@pytest.mark.parametrize("architecture", ["bert", "llama", "t5"])
def test_a_deep_copy_is_independent(architecture: str, case: Case) -> None:
    _, compact = compress_tiny(architecture, case)
    before = copy.deepcopy(compact.state_dict())
    twin = copy.deepcopy(compact)
    assert not storages(twin) & storages(compact)
    assert_same_outputs(twin, compact)
    with torch.no_grad():
        for parameter in twin.get_input_embeddings().parameters():
            parameter.mul_(-2.0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in compact.state_dict().items())
    # The copy's head, too, must read the copy's table.
    assert_same_outputs(twin, hce.decompress(twin), 2e-5)
    assert_same_outputs(compact, hce.decompress(compact), 1e-5)


@for_each_method("project")
def test_models_and_classes_can_be_pickled(case: Case) -> None:
    _, compact = compress_tiny("bert", case)
    for value in (type(compact), type(compact.config)):
        assert pickle.loads(pickle.dumps(value)) is value
    assert pickle.loads(pickle.dumps(compact.config)).to_dict() == compact.config.to_dict()
    assert_same_outputs(pickle.loads(pickle.dumps(compact)), compact)


@for_each_method("project")
def test_a_given_state_dict_is_saved(case: Case, tmp_path: Path) -> None:
    """Trainer and accelerate gather the state themselves and hand it to save_pretrained."""
    _, compact = compress_tiny("bert", case)
    state = {
        name: tensor + 1 if tensor.is_floating_point() else tensor for name, tensor in compact.state_dict().items()
    }
    compact.save_pretrained(tmp_path, state_dict=state)
    loaded = type(compact).from_pretrained(tmp_path)
    path = compact.input_table_path + "."
    structure = compact.get_input_embeddings()
    for name, tensor in loaded.state_dict().items():
        stored = structure.stored_dtype(name.removeprefix(path)) if name.startswith(path) else tensor.dtype
        assert torch.equal(tensor, state[name].to(stored).to(tensor.dtype)), name
