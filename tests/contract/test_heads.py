"""A compact model is its native class with another table: every head, every architecture."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
import transformers
from transformers import AutoConfig, PreTrainedModel

import hf_compact_embeddings as hce
from hf_compact_embeddings.modeling.architectures import INPUT_TABLE, find_input_table
from hf_compact_embeddings.modeling.transformers_internals import heads_of

from ..cases import Case, compress_tiny, first_cases, for_each_method, for_pairs
from ..tiny_models import ARCHITECTURES, tiny_config, tiny_inputs, tiny_model
from ..tools import assert_same_outputs, outputs_of, storages

BERT_HEADS = heads_of("bert")
OTHER_ARCHITECTURES = [name for name in ARCHITECTURES if name not in ("bert", "llama-untied")]
OTHER_HEADS = [(name, auto) for name in OTHER_ARCHITECTURES for auto in heads_of(tiny_config(name).model_type)]


def assert_is_compact(compact: PreTrainedModel, dense: PreTrainedModel) -> None:
    native = type(dense)
    assert type(compact) is getattr(hce, f"Compact{native.__name__}")
    assert isinstance(compact, native)
    assert compact.config.model_type == f"compact-{dense.config.model_type}"
    assert compact.config.compact_embeddings == {compact.input_table_path: compact.get_input_embeddings().to_dict()}
    assert compact.input_table_path == find_input_table(dense).paths[0], "keys keep the native place"
    assert compact.dtype == dense.dtype and compact.device == dense.device


@pytest.mark.parametrize("auto_class", BERT_HEADS)
@for_each_method("project", "dense")
def test_every_head_of_bert(auto_class: str, case: Case, tmp_path) -> None:
    dense, compact = compress_tiny("bert", case, head=BERT_HEADS[auto_class])
    assert_is_compact(compact, dense)
    assert_same_outputs(compact, hce.decompress(compact), 1e-5)
    compact.save_pretrained(tmp_path)
    loaded = getattr(transformers, auto_class).from_pretrained(tmp_path)
    assert type(loaded) is type(compact)
    assert_same_outputs(loaded, compact)


@pytest.mark.parametrize("architecture", OTHER_ARCHITECTURES)
def test_other_architectures_have_several_heads(architecture: str) -> None:
    assert len(heads_of(tiny_config(architecture).model_type)) > 1


@pytest.mark.parametrize("architecture, auto_class", OTHER_HEADS)
def test_every_head_of_other_architectures(architecture: str, auto_class: str, tmp_path) -> None:
    head = heads_of(tiny_config(architecture).model_type)[auto_class]
    dense, compact = compress_tiny(architecture, first_cases("project", "dense")[0], head=head)
    try:
        outputs_of(dense)
    except IndexError as error:
        # In some releases this head reads what its native body does not give; nothing else may fail by itself.
        if not head.endswith("ForMultipleChoice"):
            raise
        pytest.skip(f"the native {head} of Transformers {transformers.__version__} raises {error!r}")
    assert_is_compact(compact, dense)
    assert_same_outputs(compact, hce.decompress(compact), 1e-5)
    compact.save_pretrained(tmp_path)
    loaded = getattr(transformers, auto_class).from_pretrained(tmp_path)
    assert_same_outputs(loaded, compact)


@for_pairs("project", "dense")
def test_outputs_are_those_of_the_decompressed_model(architecture: str, case: Case) -> None:
    dense, compact = compress_tiny(architecture, case)
    assert_is_compact(compact, dense)
    native = hce.decompress(compact)
    assert type(native) is type(dense)
    known = {"dtype", "_name_or_path"}  # loading fills them in
    assert {name: value for name, value in native.config.to_dict().items() if name not in known} == {
        name: value for name, value in dense.config.to_dict().items() if name not in known
    }
    assert compact.name_or_path != "None" and native.name_or_path != "None"
    assert torch.equal(native.get_input_embeddings().weight, compact.get_input_embeddings().dense())
    assert_same_outputs(compact, native, 1e-5)


@for_pairs("project")
def test_compress_leaves_its_input_alone(architecture: str, case: Case) -> None:
    dense = tiny_model(architecture).requires_grad_(False)
    dense.get_input_embeddings().requires_grad_(True)
    before = SimpleNamespace(
        state=copy.deepcopy(dense.state_dict()),
        config=copy.deepcopy(dense.config.to_dict()),
        modules=[(name, id(module)) for name, module in dense.named_modules()],
        trainable=[(name, parameter.requires_grad) for name, parameter in dense.named_parameters()],
    )
    compact = hce.compress(dense, case.method, **case.options)
    assert type(dense) is getattr(transformers, ARCHITECTURES[architecture][2])
    assert [(name, id(module)) for name, module in dense.named_modules()] == before.modules
    assert [(name, parameter.requires_grad) for name, parameter in dense.named_parameters()] == before.trainable
    assert dense.config.to_dict() == before.config
    assert dense.state_dict().keys() == before.state.keys()
    assert all(torch.equal(tensor, before.state[name]) for name, tensor in dense.state_dict().items())
    assert not storages(dense) & storages(compact)
    assert not storages(compact) & storages(hce.decompress(compact))


@for_pairs("project", "dense")
def test_what_a_checkpoint_does_not_hold_is_carried_over(architecture: str, case: Case) -> None:
    dense = tiny_model(architecture).requires_grad_(False)
    if dense.can_generate():
        dense.generation_config.max_new_tokens = 17
    for training in (True, False):
        compact = hce.compress(dense.train(training), case.method, **case.options)
        assert compact.training == hce.decompress(compact).training == training
        table = compact.input_table_path
        trainable = {name for name, parameter in compact.named_parameters() if parameter.requires_grad}
        assert all(name.startswith(f"{table}.") for name in trainable)
    if dense.can_generate():
        assert compact.generation_config.max_new_tokens == 17


@for_pairs("project")
def test_no_dense_table_is_left(architecture: str, case: Case) -> None:
    dense, compact = compress_tiny(architecture, case)
    head, table = dense.get_output_embeddings(), dense.get_input_embeddings()
    untied = head is not None and head.weight is not table.weight
    # Bytes of codes may well have the table's shape; floats may not.
    shapes = [tuple(tensor.shape) for tensor in compact.state_dict().values() if tensor.is_floating_point()]
    assert shapes.count(tuple(table.weight.shape)) == untied


@for_pairs("project")
def test_gradients_reach_the_table_from_both_sides(architecture: str, case: Case) -> None:
    _, compact = compress_tiny(architecture, case)
    outputs = compact(**tiny_inputs(compact))
    (outputs.logits * torch.randn_like(outputs.logits)).sum().backward()
    for name, parameter in compact.get_input_embeddings().named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


@for_each_method("project", "dense")
@pytest.mark.parametrize("architecture", ["bert", "llama", "t5", "gemma3_text"])
def test_training_moves_both_sides_together(architecture: str, case: Case) -> None:
    """A head that kept its own copy of the table would not follow the look-up."""
    _, compact = compress_tiny(architecture, case)
    with torch.no_grad():
        for parameter in compact.get_input_embeddings().parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    assert_same_outputs(compact, hce.decompress(compact), 1e-5)


@for_each_method("project", "dense")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("architecture", ["bert", "gemma3_text", "t5"])
def test_half_precision_models(architecture: str, dtype: torch.dtype, case: Case) -> None:
    compact = hce.compress(tiny_model(architecture).to(dtype), case.method, **case.options)
    assert {parameter.dtype for parameter in compact.get_input_embeddings().parameters()} == {dtype}
    native = hce.decompress(compact)
    assert compact.dtype == native.dtype == native.get_input_embeddings().weight.dtype == dtype
    with torch.no_grad():
        ours, theirs = compact(**tiny_inputs(compact)).logits, native(**tiny_inputs(native)).logits
    assert ours.dtype == dtype
    torch.testing.assert_close(ours, theirs, atol=0.02 * float(theirs.abs().max()), rtol=0)


@for_each_method("project")
def test_models_from_scratch(case: Case) -> None:
    config = hce.CompactBertConfig(
        **{**tiny_model("bert").config.to_diff_dict(), "model_type": None},
        compact_embeddings=case.config(init="random").to_dict(),
    )
    config.pad_token_id = 0
    torch.manual_seed(0)
    model = transformers.AutoModelForMaskedLM.from_config(config)
    assert type(model) is hce.CompactBertForMaskedLM
    structure = model.get_input_embeddings()
    assert structure(torch.tensor([0])).eq(0).all(), "the padding row is a mask"
    assert structure(torch.tensor([5])).ne(0).any()
    torch.manual_seed(0)
    assert_same_outputs(transformers.AutoModelForMaskedLM.from_config(config).eval(), model.eval())
    model(**tiny_inputs(model)).logits.square().mean().backward()
    assert all(parameter.grad is not None for parameter in structure.parameters())


@for_each_method("project")
def test_compress_starts_anew_where_asked(case: Case) -> None:
    dense, compact = compress_tiny("bert", case, init="random")
    structure = compact.get_input_embeddings()
    assert structure.layout.mask_padding and structure.layout.private_rows == 0
    assert structure(torch.tensor([dense.config.pad_token_id])).eq(0).all()
    assert_same_outputs(compact, hce.decompress(compact), 1e-5)


def test_a_configuration_object_may_be_given_to_a_config_class() -> None:
    structure = first_cases("project")[0].config(init="random")
    config = hce.CompactBertConfig(compact_embeddings=structure)
    assert config.compact_embeddings == {INPUT_TABLE: structure.to_dict()}
    assert AutoConfig.for_model(**config.to_dict()).compact_embeddings == config.compact_embeddings
