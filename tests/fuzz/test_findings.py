"""What got through once, each by its name: damage that ended in something else than one kind of error."""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForMaskedLM

import hf_compact_embeddings as hce
from hf_compact_embeddings.modeling.errors import CheckpointError, CompactConfigError
from hf_compact_embeddings.modeling.huffman import unpack_symbols
from hf_compact_embeddings.modeling.options import parse_size
from hf_compact_embeddings.modeling.structure_subspace import smallest_base

from ..cases import EXTRAS, Case, all_cases, build_structure, compress_tiny, first_cases, for_all, for_each_method
from ..tools import LargestTensor, assert_same_state

CONFIG, WEIGHTS = "config.json", "model.safetensors"
TABLE = "bert.embeddings.word_embeddings."


def saved(case: Case, folder: Path) -> Path:
    _, compact = compress_tiny("bert", case)
    compact.save_pretrained(folder)
    return folder


def with_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> Path:
    tensors = {name: tensor.clone() for name, tensor in load_file(folder / WEIGHTS).items()}
    change(tensors)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    return folder


def with_config(folder: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    config = json.loads((folder / CONFIG).read_text())
    change(config)
    (folder / CONFIG).write_text(json.dumps(config))
    return folder


def refusal(folder: Path, **options: Any) -> str:
    with pytest.raises(CheckpointError) as caught:
        AutoModelForMaskedLM.from_pretrained(folder, **options)
    return str(caught.value)


def test_the_base_of_ten_billion_digits() -> None:
    assert smallest_base(1 << 30, 10**10) == 2
    for count in (1, 2, 3, 4, 7, 8, 9, 120, 250_002):
        for digits in range(1, 40):
            base = smallest_base(count, digits)
            assert base**digits > count >= (base - 1) ** digits


def test_a_size_that_no_float_can_hold() -> None:
    with pytest.raises(CompactConfigError, match="max_bytes"):
        parse_size("9" * 400)


def test_a_long_index_is_read_in_pieces() -> None:
    lengths, packed = (1, 1), torch.randint(256, (1 << 20,), dtype=torch.uint8)
    bits = ((packed.unsqueeze(1) >> torch.arange(8)) & 1).flatten().long()
    with LargestTensor() as largest:
        found = unpack_symbols(packed, 600_000, lengths)
    assert torch.equal(found, bits[:600_000])
    assert largest.bytes < 6 * (1 << 20)


@for_each_method("project")
def test_sizes_that_the_files_are_far_too_small_for(case: Case, tmp_path: Path) -> None:
    def grow(config: dict[str, Any]) -> None:
        (table,) = config["compact_embeddings"].values()
        layout, rows = table["layout"], 1 << 30
        config["vocab_size"] = layout["coded_rows"] = rows
        if "tier_rows" in layout:
            layout["tier_rows"] = [rows, *([0] * (len(layout["tier_rows"]) - 1))]

    with_config(saved(case, tmp_path), grow)
    # As if they were not there: nothing is to be compared with.
    with_tensors(tmp_path, lambda tensors: [tensors.pop(name) for name in list(tensors) if TABLE in name])
    start = time.process_time()
    with LargestTensor() as largest:
        message = refusal(tmp_path)
    assert WEIGHTS in message and "bytes" in message
    assert largest.bytes < 1 << 20 and time.process_time() - start < 30


@for_each_method("project")
@pytest.mark.parametrize("stored", [torch.int16, torch.float32], ids=str)
def test_codes_of_another_type(case: Case, stored: torch.dtype, tmp_path: Path) -> None:
    names = [name for name, tensor in load_file(saved(case, tmp_path) / WEIGHTS).items() if tensor.dtype == torch.uint8]
    if not names:
        pytest.skip("stores floats only")
    with_tensors(tmp_path, lambda tensors: tensors.update({name: tensors[name].to(stored) for name in names[:1]}))
    message = refusal(tmp_path)
    assert f"`{names[0]}`" in message and "U8" in message


@for_each_method("project")
def test_numbers_of_another_type(case: Case, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tensors = load_file(saved(case, tmp_path) / WEIGHTS)
    name = next(name for name, tensor in tensors.items() if TABLE in name and tensor.is_floating_point())
    with_tensors(tmp_path, lambda tensors: tensors.update({name: tensors[name].to(torch.int32)}))
    assert f"`{name}` is stored as I32" in refusal(tmp_path)
    logging.getLogger("transformers").propagate = True
    AutoModelForMaskedLM.from_pretrained(tmp_path, ignore_damage=True)
    # A float of another width holds numbers all the same.
    with_tensors(tmp_path, lambda found: found.update({name: tensors[name].double()}))
    assert_same_state(AutoModelForMaskedLM.from_pretrained(tmp_path), compress_tiny("bert", case)[1])


@for_each_method("project")
@pytest.mark.parametrize("value", [torch.nan, -torch.inf])
def test_numbers_that_are_not_finite(case: Case, value: float, tmp_path: Path) -> None:
    tensors = load_file(saved(case, tmp_path / "whole") / WEIGHTS)
    for name in [name for name, tensor in tensors.items() if TABLE in name and tensor.is_floating_point()]:
        folder = shutil.copytree(tmp_path / "whole", tmp_path / name)
        with_tensors(folder, lambda tensors, name=name: tensors[name].view(-1)[-1:].fill_(value))
        assert "NaN or infinity" in refusal(folder)
        repaired = AutoModelForMaskedLM.from_pretrained(folder, ignore_damage=True)
        assert repaired.state_dict()[name].view(-1)[-1] == 0
        assert repaired.compact_embedding.dense().isfinite().all()


@for_each_method("project")
def test_what_is_unknown_or_missing_can_be_done_without(case: Case, tmp_path: Path) -> None:
    tensors = load_file(saved(case, tmp_path) / WEIGHTS)
    floats = [name for name, tensor in tensors.items() if TABLE in name and tensor.is_floating_point()]
    with_tensors(tmp_path, lambda tensors: tensors.update({f"{TABLE}flavour": torch.zeros(3)}))
    assert "flavour" in refusal(tmp_path)
    with_tensors(tmp_path, lambda tensors: tensors.pop(floats[0]))
    assert floats[0] in refusal(tmp_path)
    repaired = AutoModelForMaskedLM.from_pretrained(tmp_path, ignore_damage=True)
    assert repaired.state_dict()[floats[0]].eq(0).all()
    if len(floats) < sum(TABLE in name for name in tensors):
        codes = next(name for name, tensor in tensors.items() if TABLE in name and not tensor.is_floating_point())
        with_tensors(tmp_path, lambda tensors: tensors.pop(codes))
        assert codes in refusal(tmp_path, ignore_damage=True)


@pytest.mark.parametrize("large", [3e38, 1e30])
def test_numbers_that_multiply_to_infinity(large: float, tmp_path: Path) -> None:
    compact = hce.compress(
        compress_tiny("bert", first_cases()[0])[0],
        hce.RotatedConfig(bits_per_weight=9.0, clusters=13, storage_dtype="float32"),
    )
    compact.save_pretrained(tmp_path)

    def grow(tensors: dict[str, torch.Tensor]) -> None:
        for name in ("gains", "basis_gains"):
            tensors[TABLE + name].fill_(large)

    with_tensors(tmp_path, grow)
    assert "not finite" in refusal(tmp_path)


@pytest.mark.parametrize("cut", [0, 4, 8, 100, -1], ids=str)
def test_a_weights_file_that_was_cut_off(cut: int, tmp_path: Path) -> None:
    file = saved(first_cases("project")[0], tmp_path) / WEIGHTS
    file.write_bytes(file.read_bytes()[:cut])
    assert str(file) in refusal(tmp_path)


@pytest.mark.parametrize("length", [0, 7, 1 << 40, (1 << 64) - 1])
def test_a_header_of_another_length(length: int, tmp_path: Path) -> None:
    file = saved(first_cases("project")[0], tmp_path) / WEIGHTS
    file.write_bytes(length.to_bytes(8, "little") + file.read_bytes()[8:])
    assert str(file) in refusal(tmp_path)


def test_a_configuration_that_is_no_json(tmp_path: Path) -> None:
    case = first_cases("project")[0]
    file = saved(case, tmp_path) / CONFIG
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(CheckpointError, match="config.json"):
        hce.CompactBertForMaskedLM.from_pretrained(tmp_path)
    # An Auto class reads it before it can know whose it is.
    with pytest.raises(OSError, match="config.json"):
        AutoModelForMaskedLM.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "fields",
    [
        {"hidden_act": "vocabulary"},
        {"dtype": "dispersed"},
        {"vocab_size": "many"},
        {"hidden_size": 10**30},
        {"hidden_size": [24]},
        {"num_attention_heads": 7},
        {"intermediate_size": 1 << 62},
    ],
    ids=str,
)
def test_a_field_of_the_native_configuration(fields: dict[str, Any], tmp_path: Path) -> None:
    with_config(saved(first_cases("project")[0], tmp_path), lambda config: config.update(fields))
    with pytest.raises((CheckpointError, CompactConfigError)):
        AutoModelForMaskedLM.from_pretrained(tmp_path)


@for_all("dense")
@pytest.mark.parametrize("extras", ["plain", "everything"])
def test_a_compiled_look_up_of_no_row(case: Case, extras: str) -> None:
    structure = build_structure(case, **EXTRAS[extras])
    structure(torch.tensor([0]))
    torch._dynamo.reset()
    compiled = torch.compile(lambda ids: structure(ids), backend="aot_eager")
    good = torch.tensor([[0, 3, 59]])
    torch.testing.assert_close(compiled(good), structure(good))
    for wrong in (-1, -60, 65, 1 << 40, -(1 << 40)):
        with pytest.raises((IndexError, RuntimeError)):
            compiled(torch.tensor([[0, 3, wrong]]))


@for_all()
def test_ids_are_whole_numbers(case: Case) -> None:
    structure = build_structure(case)
    ids = torch.tensor([[0, 3], [7, 59]])
    for kind in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.uint16, torch.uint32, torch.uint64):
        assert torch.equal(structure(ids.to(kind)), structure(ids))
    for kind in (torch.float32, torch.float16, torch.bool):
        with pytest.raises(TypeError, match="whole numbers"):
            structure(ids.to(kind))


@for_each_method("project")
def test_load_state_dict_looks_at_values_too(case: Case) -> None:
    _, compact = compress_tiny("bert", case)
    state = {name: value.clone() for name, value in compact.state_dict().items()}
    compact.load_state_dict(state)
    name = next(name for name, value in state.items() if TABLE in name and value.is_floating_point())
    state[name].view(-1)[:1].fill_(torch.nan)
    with pytest.raises(CheckpointError, match="NaN"):
        compact.load_state_dict(state)


def test_every_case_is_fuzzed() -> None:
    from .attempts import tables

    assert {case.method for case, _ in tables()} == set(hce.methods())
    assert len(tables()) == 2 * len(all_cases("project", "dense"))
