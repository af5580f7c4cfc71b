"""resize_token_embeddings on compact models, and what saving makes of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import hf_compact_embeddings as hce

from ..cases import Case, compress_tiny, for_each_method, for_pairs
from ..tiny_models import VOCABULARY
from ..tools import assert_same_outputs, assert_same_state, outputs_of

# Words below 90 only, so that a table cut to 100 rows can still read them.
INPUT_IDS = torch.tensor([[5, 17, 89, 42], [33, 8, 60, 71]])


def inputs_of(model) -> dict[str, torch.Tensor]:
    inputs = {"input_ids": INPUT_IDS}
    return inputs | ({"decoder_input_ids": INPUT_IDS.flip(1)} if model.config.is_encoder_decoder else {})


def assert_sized(model, rows: int) -> None:
    assert model.get_input_embeddings().num_embeddings == rows
    assert model.get_input_embeddings().weight.shape[0] == rows
    assert model.config.vocab_size == rows
    assert model.config.compact_embeddings == {model.input_table_path: model.get_input_embeddings().to_dict()}
    head = model.get_output_embeddings()
    assert head is None or head.weight.shape[0] == rows
    for output in outputs_of(model, inputs_of(model))[:1]:
        assert output.shape[-1] == rows


@for_pairs("project", "resize", "dense")
@pytest.mark.parametrize("rows", [100, 131])
def test_resized_models_live_on(architecture: str, case: Case, rows: int, tmp_path: Path) -> None:
    _, compact = compress_tiny(architecture, case)
    before = outputs_of(compact, inputs_of(compact))[0]
    returned = compact.resize_token_embeddings(rows)
    assert returned is compact.get_input_embeddings()
    assert_sized(compact, rows)
    kept = min(rows, VOCABULARY)
    after = outputs_of(compact, inputs_of(compact))[0]
    torch.testing.assert_close(after[..., :kept], before[..., :kept], atol=1e-5, rtol=1e-5)
    native = hce.decompress(compact)
    assert native.get_input_embeddings().weight.shape[0] == rows
    assert_same_outputs(compact, native, 1e-5)
    compact.save_pretrained(tmp_path)
    loaded = type(compact).from_pretrained(tmp_path)
    assert_sized(loaded, rows)
    assert_same_state(loaded, compact)
    assert_same_outputs(loaded, compact)


@for_each_method("project", "resize")
@pytest.mark.parametrize("architecture", ["bert", "llama", "t5"])
def test_pad_to_multiple_of(architecture: str, case: Case, tmp_path: Path) -> None:
    _, compact = compress_tiny(architecture, case)
    compact.resize_token_embeddings(pad_to_multiple_of=64)
    assert_sized(compact, 128)
    compact.resize_token_embeddings(130, pad_to_multiple_of=8)
    assert_sized(compact, 136)
    compact.save_pretrained(tmp_path)
    assert_same_outputs(type(compact).from_pretrained(tmp_path), compact)


@for_each_method("project", "resize")
def test_growing_once_more_after_loading(case: Case, tmp_path: Path) -> None:
    _, compact = compress_tiny("bert", case)
    compact.resize_token_embeddings(125)
    compact.save_pretrained(tmp_path)
    loaded = type(compact).from_pretrained(tmp_path)
    for model in (compact, loaded):
        model.resize_token_embeddings(140)
    assert_same_state(loaded, compact)
    loaded.resize_token_embeddings(110)
    assert_sized(loaded, 110)


@for_each_method("project", "resize")
def test_new_rows_are_random_where_asked(case: Case) -> None:
    _, compact = compress_tiny("bert", case)
    torch.manual_seed(0)
    compact.resize_token_embeddings(130, mean_resizing=False)
    added = compact.get_input_embeddings()(torch.arange(120, 130))
    assert len(torch.unique(added, dim=0)) == 10
    assert 0.2 * compact.config.initializer_range < added.std() < 5 * compact.config.initializer_range


@for_each_method("project", "resize")
def test_codes_of_added_rows_are_not_broadcast(case: Case) -> None:
    _, compact = compress_tiny("bert", case)
    compact.resize_token_embeddings(130)
    path = compact.input_table_path
    buffers = {f"{path}.{name}" for name, _ in compact.get_input_embeddings().named_buffers()}
    assert f"{path}.private_ids" in buffers
    assert set(compact._ddp_params_and_buffers_to_ignore) == buffers


@for_each_method("project", "resize")
def test_an_untied_head_is_resized_as_ever(case: Case) -> None:
    _, compact = compress_tiny("llama-untied", case)
    compact.resize_token_embeddings(130)
    assert compact.lm_head.weight.shape == (130, 24)
    assert not compact.lm_head.weight.is_meta
    assert_sized(compact, 130)
