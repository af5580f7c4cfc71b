"""Linear layers that are stored small, in every architecture: saved, loaded, tied, resized, trained, and refused."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel
from transformers.pytorch_utils import Conv1D

import hf_compact_embeddings as hce
from hf_compact_embeddings.layers import linear_layers
from hf_compact_embeddings.modeling.errors import CheckpointError, CompactConfigError, UnsupportedArchitectureError
from hf_compact_embeddings.modeling.layers import CompactLinear
from hf_compact_embeddings.modeling.tied import TiedHead

from ..tiny_models import ARCHITECTURES, tiny_inputs, tiny_model
from ..tools import assert_same_outputs, assert_same_state, outputs_of, storages, tiny_texts, tiny_tokenizer

KINDS = ("int8", "int4", "float16", "bfloat16")
WEIGHTS = "model.safetensors"
for_kinds = pytest.mark.parametrize("layers", KINDS)
for_codes = pytest.mark.parametrize("layers", ["int8", "int4"])
_COMPRESSED: dict[tuple[str, str | None], PreTrainedModel] = {}


def small(architecture: str, layers: str | None, head: str | None = None) -> PreTrainedModel:
    """Return a tiny compact model with small layers."""
    if (architecture, head) not in _COMPRESSED:
        _COMPRESSED[architecture, head] = hce.compress(tiny_model(architecture, head), "scalar")
    compact = copy.deepcopy(_COMPRESSED[architecture, head])
    return compact if layers is None else hce.compress(compact, layers=layers)


def coded(model: nn.Module) -> dict[str, CompactLinear]:
    return {path: module for path, module in model.named_modules() if isinstance(module, CompactLinear)}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@for_kinds
def test_saved_and_loaded_bit_by_bit(architecture: str, layers: str, tmp_path: Path) -> None:
    native, compact = tiny_model(architecture), small(architecture, layers)
    compact.save_pretrained(tmp_path)
    loaded = type(compact).from_pretrained(tmp_path)
    assert_same_state(loaded, compact)
    assert_same_outputs(loaded, compact)
    stored = load_file(tmp_path / WEIGHTS)
    report = hce.inspect(loaded, against=native)
    assert report.model_bytes == sum(tensor.numel() * tensor.element_size() for tensor in stored.values())
    half = torch.bfloat16 if layers == "bfloat16" else torch.float16
    tables = tuple(f"{path}." for path in compact.compact_tables)
    others = {tensor.dtype for name, tensor in stored.items() if not name.startswith(tables)}
    assert others - {torch.int64} == {half} | ({torch.uint8} if layers.startswith("int") else set())
    assert report.layers is not None and report.layers.count == len(coded(loaded))
    assert loaded.dtype == torch.float32, "in memory floats have the model's type"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@for_codes
def test_outputs_are_those_of_the_decoded_weights(architecture: str, layers: str) -> None:
    compact = small(architecture, layers)
    dense = hce.decompress(compact)
    assert not coded(dense) and not hasattr(dense.config, "compact_layers")
    assert_same_outputs(compact, dense, 3e-5)
    natives = {path: module for path, module in dense.named_modules() if type(module) in (nn.Linear, Conv1D)}
    assert set(coded(compact)) <= set(natives) and coded(compact)
    for path, layer in coded(compact).items():
        assert torch.equal(layer.native_weight(), natives[path].weight)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_codes_are_near_the_weights(architecture: str) -> None:
    native = tiny_model(architecture)
    errors = [hce.inspect(small(architecture, layers), against=native).layers.relative_mse for layers in KINDS[:2]]
    assert errors[0] < 1e-4 < errors[1] < 1e-2


def test_what_is_coded() -> None:
    compact = small("bert", "int8")
    assert set(coded(compact)) == {
        f"bert.encoder.layer.{number}.{name}"
        for number in range(2)
        for name in (
            *(f"attention.self.{part}" for part in ("query", "key", "value")),
            *("attention.output.dense", "intermediate.dense", "output.dense"),
        )
    }, "heads stay floats, since others take their place"
    assert len(compact.config.compact_layers["paths"]) == 6
    untied = tiny_model("llama-untied")
    assert not any("lm_head" in path for path in linear_layers(untied))
    assert type(small("llama-untied", "int8").lm_head) is nn.Linear


@for_codes
@pytest.mark.parametrize("architecture", ["bert", "llama", "gpt2", "t5", "bart"])
def test_tied_heads_read_the_table(architecture: str, layers: str, tmp_path: Path) -> None:
    small(architecture, layers).save_pretrained(tmp_path)
    loaded = type(small(architecture, None)).from_pretrained(tmp_path)
    head = loaded.get_output_embeddings()
    assert isinstance(head, TiedHead) and head.table is loaded.compact_embedding
    before = outputs_of(loaded)[0]
    with torch.no_grad():
        loaded.compact_embedding.scales.mul_(2)
    hidden = torch.randn(3, loaded.compact_embedding.embedding_dim)
    wanted = hidden @ loaded.compact_embedding.dense().T
    torch.testing.assert_close(head(hidden), wanted if head.bias is None else wanted + head.bias)
    assert not torch.equal(outputs_of(loaded)[0], before)


@for_codes
@pytest.mark.parametrize("architecture", ["bert", "llama", "gpt2", "t5"])
def test_resizing(architecture: str, layers: str, tmp_path: Path) -> None:
    compact = small(architecture, layers)
    before = {path: layer.state_dict() for path, layer in coded(compact).items()}
    compact.resize_token_embeddings(130)
    compact.save_pretrained(tmp_path)
    loaded = type(compact).from_pretrained(tmp_path)
    for name, value in loaded.state_dict().items():
        # The bias of new tokens is a mean, which saving rounds.
        torch.testing.assert_close(value, compact.state_dict()[name], atol=1e-6, rtol=2**-10)
    assert outputs_of(loaded)[0].shape[-1] == 130
    for path, layer in coded(loaded).items():
        assert all(torch.equal(value, before[path][name]) for name, value in layer.state_dict().items())


@for_codes
def test_other_heads_start_as_floats(layers: str, tmp_path: Path) -> None:
    compact = small("bert", layers)
    compact.save_pretrained(tmp_path / "masked")
    base = AutoModel.from_pretrained(tmp_path / "masked")
    assert {f"bert.{path}" for path in coded(base)} == set(coded(compact))
    # The base of a masked model has no pooler; here it starts anew, as a float.
    assert type(base.pooler.dense) is nn.Linear
    base.save_pretrained(tmp_path / "base")
    classifier = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=3)
    assert type(classifier.classifier) is nn.Linear
    for path, layer in coded(classifier).items():
        assert_same_state(layer, compact.get_submodule(path))
    assert classifier(**tiny_inputs(classifier)).logits.shape == (2, 3)
    classifier.save_pretrained(tmp_path / "classifier")
    assert_same_state(AutoModelForSequenceClassification.from_pretrained(tmp_path / "classifier").bert, classifier.bert)


@for_codes
@pytest.mark.parametrize("architecture", ["bert", "llama", "gpt2", "t5"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision(architecture: str, layers: str, dtype: torch.dtype, tmp_path: Path) -> None:
    compact = small(architecture, layers)
    compact.save_pretrained(tmp_path)
    loaded = type(compact).from_pretrained(tmp_path, dtype=dtype)
    assert loaded.dtype == dtype
    assert all(layer.codes.dtype == torch.uint8 for layer in coded(loaded).values())
    got, wanted = outputs_of(loaded)[0], outputs_of(compact)[0]
    assert got.dtype == dtype
    assert torch.cosine_similarity(got.float().flatten(), wanted.flatten(), dim=0) > 0.999
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.cosine_similarity(outputs_of(compact)[0].float().flatten(), wanted.flatten(), dim=0) > 0.99


@for_codes
@pytest.mark.parametrize("architecture", ["bert", "llama", "gpt2", "t5"])
def test_all_but_the_codes_is_trained(architecture: str, layers: str, tmp_path: Path) -> None:
    compact = small(architecture, layers).train()
    before = copy.deepcopy(compact.state_dict())
    optimizer = torch.optim.Adam(compact.parameters(), lr=0.01)
    for _ in range(2):
        optimizer.zero_grad()
        outputs_of_training(compact).square().mean().backward()
        optimizer.step()
    after = compact.state_dict()
    floats = {name for name, value in after.items() if value.is_floating_point()}
    assert {name for name in floats if torch.equal(after[name], before[name])} == set()
    assert all(torch.equal(after[name], before[name]) for name in set(after) - floats)
    assert any(name.endswith(".scales") for name in floats)
    compact.eval().save_pretrained(tmp_path)
    loaded = type(compact).from_pretrained(tmp_path)
    for name, value in loaded.state_dict().items():
        # Saving rounds what training has moved, once.
        torch.testing.assert_close(value, after[name], atol=1e-6, rtol=2**-10)


def outputs_of_training(model: PreTrainedModel) -> torch.Tensor:
    return model(**tiny_inputs(model)).logits


def test_a_frozen_model_stays_frozen() -> None:
    native = tiny_model("bert")
    native.bert.encoder.requires_grad_(False)
    compact = hce.compress(native, "scalar", layers="int8")
    assert not any(parameter.requires_grad for parameter in compact.bert.encoder.parameters())
    assert compact.cls.predictions.transform.dense.weight.requires_grad


@for_codes
def test_a_random_start_has_floats_in_its_layers(layers: str) -> None:
    compact = small("bert", layers)
    fresh = AutoModel.from_config(compact.config)
    assert not coded(fresh) and fresh.config.compact_layers is None
    assert compact.config.compact_layers is not None
    assert outputs_of(fresh)[0].isfinite().all()


@for_kinds
def test_at_once_or_afterwards(layers: str) -> None:
    native = tiny_model("bert")
    plain = hce.compress(native, "scalar")
    state = copy.deepcopy(plain.state_dict())
    at_once, afterwards = hce.compress(native, "scalar", layers=layers), hce.compress(plain, layers=layers)
    assert_same_state(at_once, afterwards)
    assert at_once.config.compact_source["layers"] == afterwards.config.compact_source["layers"] == layers
    assert not storages(afterwards) & storages(plain)
    assert all(torch.equal(value, state[name]) for name, value in plain.state_dict().items())
    with pytest.raises(CompactConfigError, match="has small layers already"):
        hce.compress(at_once, layers="int8")


def test_texts_make_errors_of_codes_smaller_where_they_are_read() -> None:
    native, tokenizer = tiny_model("bert"), tiny_tokenizer()
    texts = tiny_texts(64)
    compact = hce.compress(native, "scalar", tokenizer=tokenizer, texts=texts)
    told = hce.compress(compact, layers="int4", tokenizer=tokenizer, texts=texts)
    untold = hce.compress(compact, layers="int4")
    batch = tokenizer(texts, padding=True, truncation=True, max_length=60, return_tensors="pt")
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        wanted, near, far = (model.bert(**inputs).last_hidden_state for model in (compact, told, untold))
    kept = inputs["attention_mask"].bool()
    assert (near - wanted)[kept].square().sum() < 0.7 * (far - wanted)[kept].square().sum()


@for_codes
def test_copies_and_pickles(layers: str) -> None:
    compact = small("llama", layers)
    twin = copy.deepcopy(compact)
    assert not storages(twin) & storages(compact)
    assert_same_outputs(twin, compact)
    assert_same_outputs(pickle.loads(pickle.dumps(compact)), compact)


def test_codes_are_not_broadcast() -> None:
    compact = small("bert", "int8")
    names = {name for name, _ in compact.named_buffers()}
    assert {f"{path}.codes" for path in coded(compact)} <= set(compact._ddp_params_and_buffers_to_ignore) & names


@for_codes
def test_generation(layers: str, tmp_path: Path) -> None:
    compact = small("llama", layers)
    compact.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    ids = tiny_inputs(compact)["input_ids"][1:]
    options = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}
    assert torch.equal(loaded.generate(ids, **options), hce.decompress(compact).generate(ids, **options))


@for_codes
def test_a_layer_compiles_in_one_piece(layers: str) -> None:
    layer = next(iter(coded(small("bert", layers)).values()))
    hidden = torch.randn(2, 5, layer.in_features)
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(hidden), layer(hidden))


# Adapters.


@for_codes
@pytest.mark.parametrize(("architecture", "target"), [("bert", "query"), ("llama", "q_proj"), ("gpt2", "c_attn")])
def test_lora_stays_beside_the_codes(architecture: str, target: str, layers: str, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="peft comes with the test extra")
    base = small(architecture, layers)
    options = peft.LoraConfig(r=2, target_modules=[target], init_lora_weights=False)
    adapted = peft.get_peft_model(copy.deepcopy(base), options)
    outputs_of_training(adapted).square().mean().backward()
    adapted.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path).eval()
    assert_same_outputs(loaded, adapted.eval())
    assert not torch.equal(outputs_of(loaded)[0], outputs_of(base)[0])
    with pytest.raises(UnsupportedArchitectureError, match="stored as codes, which nothing can be .* added to"):
        loaded.merge_and_unload()
    merged = peft.PeftModel.from_pretrained(hce.decompress(base), tmp_path).eval().merge_and_unload()
    assert_same_outputs(merged, adapted, 1e-4)


# Compressing while loading.


@pytest.mark.parametrize("layers", [None, "int4"])
@pytest.mark.parametrize("architecture", ["bert", "llama", "t5", "gpt2"])
def test_compressed_while_loading(architecture: str, layers: str | None, tmp_path: Path) -> None:
    native = tiny_model(architecture)
    native.save_pretrained(tmp_path / "dense")
    asked = hce.CompactEmbeddingsQuantization("scalar", layers=layers)
    loaded = type(native).from_pretrained(tmp_path / "dense", quantization_config=asked)
    wanted = hce.compress(native, "scalar", layers=layers)
    assert type(loaded) is type(wanted)
    assert_same_state(loaded, wanted)
    assert_same_outputs(loaded, wanted)
    loaded.save_pretrained(tmp_path / "compact")
    config = json.loads((tmp_path / "compact" / "config.json").read_text())
    assert "quantization_config" not in config and config["model_type"].startswith("compact-")
    again = type(loaded).from_pretrained(tmp_path / "compact")
    assert_same_outputs(again, loaded)
    assert not getattr(loaded, "is_quantized", False) and not hasattr(loaded, "hf_quantizer")
    assert_same_outputs(copy.deepcopy(loaded), loaded)
    with pytest.raises(CompactConfigError, match="is compact already"):
        type(loaded).from_pretrained(tmp_path / "compact", quantization_config=asked)


def test_compressing_while_loading_reads_the_tokenizer_beside_the_model(tmp_path: Path) -> None:
    native, tokenizer = tiny_model("bert"), tiny_tokenizer()
    native.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    asked = hce.CompactEmbeddingsQuantization(ratio=3, layers="int8")
    loaded = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path, quantization_config=asked)
    assert_same_state(loaded, hce.compress(native, ratio=3, layers="int8", tokenizer=tokenizer))
    without = hce.CompactEmbeddingsQuantization("scalar", tokenizer=None)
    loaded = AutoModel.from_pretrained(tmp_path, quantization_config=without)
    assert loaded.config.compact_source["tokenizer"] is False
    with pytest.raises(CompactConfigError, match="compressed in one place"):
        places = {"bert": "cpu", "cls": "disk"}
        transformers.AutoModelForMaskedLM.from_pretrained(tmp_path, quantization_config=asked, device_map=places)


# What is refused.


def test_bad_requests() -> None:
    native = tiny_model("bert")
    for wrong in ("int3", "", "float32", 8):
        with pytest.raises(CompactConfigError, match="`layers` is .*, but known are 'int8'"):
            hce.compress(native, "scalar", layers=wrong)
    with torch.no_grad():
        native.bert.encoder.layer[0].output.dense.bias[0] = 1e5
    with pytest.raises(CompactConfigError, match=r"output\.dense\.bias` holds values beyond float16"):
        hce.compress(native, "scalar", layers="int8")
    assert not coded(hce.compress(native, "scalar", layers="bfloat16"))


_CODES = "bert.encoder.layer.1.output.dense.codes"


def _without_codes(state: dict[str, Any], config: dict[str, Any]) -> None:
    del state[_CODES]


def _short_codes(state: dict[str, Any], config: dict[str, Any]) -> None:
    state[_CODES] = state[_CODES][:-1].clone()


def _no_number(state: dict[str, Any], config: dict[str, Any]) -> None:
    state[_CODES.replace("codes", "scales")][0] = float("nan")


def _unknown_codes(state: dict[str, Any], config: dict[str, Any]) -> None:
    config["compact_layers"]["codes"] = "int3"


def _no_paths(state: dict[str, Any], config: dict[str, Any]) -> None:
    config["compact_layers"]["paths"] = [1]


def _later_version(state: dict[str, Any], config: dict[str, Any]) -> None:
    config["compact_layers"]["format_version"] = 2


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_without_codes, "The checkpoint lacks bert.encoder.layer.1.output.dense.codes"),
        (_short_codes, r"codes` is \(23, 32\) in the checkpoint"),
        (_no_number, "`scales` of a linear layer holds NaN or infinity"),
        (_unknown_codes, "`compact_layers` in the model's configuration: `codes` is 'int3'"),
        (_no_paths, "`paths` is .*, but it must be a list of names"),
        (_later_version, "`format_version` is 2"),
    ],
)
def test_damaged_checkpoints(damage: Any, message: str, tmp_path: Path) -> None:
    compact = small("bert", "int8")
    compact.save_pretrained(tmp_path)
    state = load_file(tmp_path / WEIGHTS)
    config = json.loads((tmp_path / "config.json").read_text())
    damage(state, config)
    save_file(state, tmp_path / WEIGHTS, {"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=message):
        type(compact).from_pretrained(tmp_path)


def test_a_model_in_another_librarys_hands_is_asked_for() -> None:
    peft = pytest.importorskip("peft", reason="peft comes with the test extra")
    adapted = peft.get_peft_model(tiny_model("bert"), peft.LoraConfig(r=2, target_modules=["query"]))
    with pytest.raises(UnsupportedArchitectureError, match=r"is a PeftModel, .*`model\.merge_and_unload\(\)`"):
        hce.compress(adapted, "scalar")
    assert isinstance(hce.compress(adapted.merge_and_unload(), "scalar"), hce.CompactBertForMaskedLM)


def test_a_sentence_model_is_asked_for_its_transformer(tmp_path: Path) -> None:
    sentences = pytest.importorskip("sentence_transformers", reason="it comes with the test extra")
    tiny_model("bert", "BertModel").save_pretrained(tmp_path / "dense")
    tiny_tokenizer().save_pretrained(tmp_path / "dense")
    model = sentences.SentenceTransformer(str(tmp_path / "dense"))
    with pytest.raises(UnsupportedArchitectureError, match=r"is a SentenceTransformer, .*`model\[0\]\.model`"):
        hce.compress(model, "scalar", layers="int8")
    model[0].model = hce.compress(model[0].model, "scalar", layers="int8")
    model.save(str(tmp_path / "compact"))
    loaded = sentences.SentenceTransformer(str(tmp_path / "compact"))
    assert coded(loaded[0].model)
    texts = tiny_texts(3)
    assert (loaded.encode(texts) == model.encode(texts)).all()
