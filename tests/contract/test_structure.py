"""What every structure promises by itself, without a model."""

from __future__ import annotations

import dataclasses
import json
import warnings
from functools import partial
from pathlib import Path

import pytest
import torch

import hf_compact_embeddings as hce
from hf_compact_embeddings.evaluation.reading import count_collisions
from hf_compact_embeddings.fitting import registered_methods
from hf_compact_embeddings.modeling.architectures import read_stored_tables
from hf_compact_embeddings.modeling.errors import CompactEmbeddingsError
from hf_compact_embeddings.modeling.structure import CompactEmbedding

from ..cases import (
    ABILITIES,
    TINY_CASES,
    Case,
    all_cases,
    build_structure,
    compress_tiny,
    for_all,
    for_all_with_extras,
)
from ..tools import LargestTensor, assert_same_state

IDS = torch.tensor([[0, 3, 7, 31], [59, 59, 1, 3]])


def rounding_bound(hidden: torch.Tensor, dense: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return how far scores may be off that are summed in float32 from rows rounded to a dtype."""
    return 4 * torch.finfo(dtype).eps * (hidden.double().abs() @ dense.double().abs().T) + 1e-12


def test_every_method_has_tiny_cases() -> None:
    missing = sorted(set(hce.methods()) - set(TINY_CASES))
    assert not missing, f"add one or more tiny configurations of {missing} to `_CASES` in tests/cases.py"


def test_the_cases_belong_to_the_registry() -> None:
    unknown = sorted(set(TINY_CASES) - set(hce.methods()))
    assert not unknown, f"`_CASES` in tests/cases.py names {unknown}: no such method is registered"
    assert all(case.lacks <= set(ABILITIES) for case in all_cases())


@pytest.mark.parametrize(
    "options_class", [method.structure.options_class for method in registered_methods()], ids=lambda c: c.method
)
def test_the_options_class_is_a_frozen_public_name(options_class) -> None:
    assert getattr(hce, options_class.__name__) is options_class
    assert options_class.__name__ in dir(hce)
    options = options_class()
    with pytest.raises(dataclasses.FrozenInstanceError):
        options.storage_dtype = "float32"


@for_all_with_extras()
def test_options_and_layout_go_through_json(case: Case, extras: dict) -> None:
    options, structure = case.config(), build_structure(case, **extras)
    for written, wanted in ((options, (options, None)), (structure, (structure.options, structure.layout))):
        stored = json.loads(json.dumps(written.to_dict()))
        assert stored["method"] == case.method
        assert stored["format_version"] == type(options).format_version == 1
        assert read_stored_tables({"table": stored}) == {"table": wanted}
    assert structure.options == options, "a fit leaves what was asked for as it was"


@for_all()
def test_sizes_of_options_make_a_structure(case: Case) -> None:
    options, structure_class = case.config(), type(build_structure(case))
    layout = structure_class.layout_for(options, 60, 24, options.budget(60, 24))
    assert (layout.coded_rows, layout.mask_padding) == (60, False)
    with torch.device("meta"):
        structure = structure_class(options, layout, 60, 24)
        random = structure_class(options, structure_class.random_layout(options, 60, 24), 60, 24, 3)
    assert structure.layout == layout, "building a structure changes no size"
    assert (random.layout.private_rows, random.layout.mask_padding) == (0, True)


@for_all_with_extras("dense")
def test_rows_are_those_of_the_dense_table(case: Case, extras: dict) -> None:
    structure = build_structure(case, **extras)
    dense = structure.dense()
    assert dense.shape == (structure.num_embeddings, 24)
    assert dense.dtype == torch.float32
    assert dense.isfinite().all()
    for ids in (IDS, IDS[0], IDS[0, 0], IDS[:, :0], torch.arange(structure.num_embeddings)):
        # Decoding by a matrix product may differ in the last bit with the number of rows.
        torch.testing.assert_close(structure.embed(ids), dense[ids])
    torch.testing.assert_close(torch.cat(list(structure.dense_chunks(7))), dense)


@for_all_with_extras()
def test_ids_may_be_a_view_of_others(case: Case, extras: dict) -> None:
    structure = build_structure(case, **extras)
    always = torch.is_warn_always_enabled()
    torch.set_warn_always(True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for ids in (IDS.T, IDS[:, 1:], IDS[:, ::2], IDS[:1].expand(3, 4)):
                assert torch.equal(structure(ids), structure(ids.contiguous()))
    finally:
        torch.set_warn_always(always)


@for_all_with_extras("project", "dense")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_scores_are_products_with_the_dense_table(case: Case, extras: dict, dtype: torch.dtype) -> None:
    structure = build_structure(case, **extras).to(dtype)
    dense = structure.dense()
    assert dense.dtype == dtype
    generator = torch.Generator().manual_seed(1)
    for shape in ((2, 3, 24), (5, 24), (24,), (0, 24), (40, 24)):
        hidden = torch.randn(shape, generator=generator).to(dtype)
        scores = structure.project(hidden)
        assert scores.shape == (*shape[:-1], structure.num_embeddings)
        assert scores.dtype == dtype
        wanted = hidden.double() @ dense.double().T
        assert ((scores.double() - wanted).abs() <= rounding_bound(hidden, dense, dtype)).all()


@for_all("project", "dense")
def test_scores_are_summed_in_float32(case: Case) -> None:
    # In half precision, 2,048 + 1 is 2,048: the small addends would be lost one by one.
    structure = build_structure(case, private=(0,)).half()
    with torch.no_grad():
        for parameter in structure.parameters():
            parameter.zero_()
        structure.private_vectors.fill_(1.0)
    hidden = torch.ones(1, 24, dtype=torch.float16)
    hidden[0, 0] = 2048.0
    assert structure.project(hidden)[0, 0] == torch.tensor(2071.0, dtype=torch.float16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert structure.project(hidden)[0, 0] == torch.tensor(2071.0, dtype=torch.float16)


@for_all_with_extras("project")
def test_only_look_ups_are_scaled(case: Case, extras: dict) -> None:
    structure = build_structure(case, **{**extras, "scale": 4.0})
    hidden = torch.randn(3, 24)
    assert torch.equal(structure(IDS), 4.0 * structure.embed(IDS))
    assert torch.equal(structure(IDS, scale=0.5), 0.5 * structure.embed(IDS))
    assert torch.equal(structure(IDS, scale=1.0), structure.embed(IDS))
    assert torch.equal(structure(hidden, project=True), structure.project(hidden))


@for_all("project", "dense")
def test_padding_reads_as_zero_on_both_sides(case: Case) -> None:
    structure = build_structure(case, padding_idx=3, mask_padding=True)
    assert structure(torch.tensor([3, 4])).norm(dim=-1).gt(0).tolist() == [False, True]
    assert structure.dense()[3].eq(0).all()
    assert structure.project(torch.randn(4, 24))[:, 3].eq(0).all()


@for_all("dense")
def test_private_rows_are_exact(case: Case) -> None:
    structure = build_structure(case, private=(0, 7, 59), padding_idx=7)
    table = torch.randn(60, 24, generator=torch.Generator().manual_seed(0))
    stored = structure.stored_dtype("private_vectors")
    assert structure.private_id_list().tolist() == [0, 7, 59]
    assert torch.equal(structure.dense()[[0, 7, 59]], table[[0, 7, 59]].to(stored).float())


@for_all_with_extras()
def test_weight_has_a_shape_and_no_values(case: Case, extras: dict) -> None:
    structure = build_structure(case, **extras)
    weight = structure.weight
    assert weight.is_meta
    assert weight.shape == (structure.num_embeddings, 24)
    assert weight.dtype == structure.dtype == torch.float32
    assert structure.half().weight.dtype == torch.float16
    assert weight.requires_grad
    assert not structure.requires_grad_(False).weight.requires_grad


@for_all_with_extras()
def test_tensors_are_floats_to_train_or_stored_bytes(case: Case, extras: dict) -> None:
    structure = build_structure(case, **extras)
    assert all(parameter.is_floating_point() for parameter in structure.parameters())
    assert all(buffer.dtype == torch.uint8 for buffer in structure.buffers())
    names = {name for name, _ in (*structure.named_parameters(), *structure.named_buffers())}
    assert names == set(structure.state_dict())
    counted = sum(
        tensor.numel() * (tensor.element_size() if tensor.dtype == torch.uint8 else stored.itemsize)
        for name, tensor in structure.state_dict().items()
        for stored in [structure.stored_dtype(name)]
    )
    assert structure.nbytes == counted
    assert structure.half().nbytes == counted, "what is stored does not depend on the dtype in memory"


@for_all_with_extras()
def test_a_structure_is_built_on_the_meta_device(case: Case, extras: dict) -> None:
    full = build_structure(case, **extras)
    with torch.device("meta"), LargestTensor() as largest:
        options, layout = read_stored_tables({"table": full.to_dict()})["table"]
        empty = type(full)(options, layout, full.num_embeddings, 24, full.padding_idx, full.scale)
    assert largest.bytes == 0
    assert {name: (t.shape, t.dtype) for name, t in empty.state_dict().items()} == {
        name: (t.shape, t.dtype) for name, t in full.state_dict().items()
    }
    empty.to_empty(device="cpu").load_state_dict(full.state_dict())
    assert_same_state(empty, full)
    assert torch.equal(empty(IDS), full(IDS))


@for_all_with_extras()
def test_stored_values_survive_their_storage_dtype(case: Case, extras: dict) -> None:
    structure = build_structure(case, **extras)
    for name, tensor in structure.named_parameters():
        if "added" not in extras or name != "private_vectors":
            assert torch.equal(tensor, tensor.to(structure.stored_dtype(name)).float()), name
    structure.round_to_storage()
    for name, tensor in structure.named_parameters():
        assert torch.equal(tensor, tensor.to(structure.stored_dtype(name)).float()), name


@for_all_with_extras("project", "dense")
def test_gradients_are_those_of_the_dense_table(case: Case, extras: dict) -> None:
    structure = build_structure(case, **extras).double()
    hidden = torch.randn(5, 24, dtype=torch.float64, requires_grad=True)
    outer = torch.randn(5, structure.num_embeddings, dtype=torch.float64)
    every = torch.arange(structure.num_embeddings)
    for ours, dense in (
        (structure.project(hidden), hidden @ structure.dense().T),
        (structure.embed(every).T, structure.dense().T),
    ):
        weight = outer[:, : ours.shape[-1]].repeat(5, 1)[: ours.shape[0]]
        leaves = [hidden, *structure.parameters()]
        got = torch.autograd.grad((ours * weight).sum(), leaves, allow_unused=True)
        wanted = torch.autograd.grad((dense * weight).sum(), leaves, allow_unused=True)
        assert wanted[1:] and all(gradient is not None and gradient.abs().sum() > 0 for gradient in wanted[1:])
        for left, right in zip(got, wanted, strict=True):
            assert (left is None) == (right is None)
            if left is not None:
                # Scores are summed in float32.
                torch.testing.assert_close(left, right, atol=1e-5, rtol=1e-4)


@for_all()
def test_random_starts_differ_by_their_seed(case: Case) -> None:
    starts = []
    for seed in (1, 1, 2):
        structure = build_structure(case, padding_idx=0, mask_padding=True, init="random")
        torch.manual_seed(seed)
        structure.reset_parameters()
        starts.append(structure(IDS))
    one, again, other = starts
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert one.isfinite().all() and 0 < one.std() < 1
    assert len(torch.unique(one.flatten(0, 1), dim=0)) == len(torch.unique(IDS)), "tokens start apart"


@for_all("project")
def test_few_scores_and_rows_never_build_the_table(case: Case) -> None:
    rows, width = 40_000, 64
    structure = build_structure(case, rows=rows, width=width, init="random")
    with torch.no_grad(), LargestTensor() as scoring:
        structure(torch.randn(1, width), project=True)
    with torch.no_grad(), LargestTensor() as looking_up:
        structure(torch.arange(8))
    assert rows * 4 <= scoring.bytes < rows * width * 4
    assert looking_up.bytes < rows * width * 4 / 8


@for_all_with_extras("dense")
def test_collisions_are_the_rows_that_equal_an_earlier_one(case: Case, extras: dict) -> None:
    structure = build_structure(case, **extras)
    assert count_collisions(structure) == structure.num_embeddings - len(torch.unique(structure.dense(), dim=0))


@pytest.mark.parametrize(
    ("private", "rate"), [((), 1.5), (tuple(range(0, 600, 20)), 3.0)], ids=["coded", "with-private-rows"]
)
def test_rows_without_bits_collide_in_their_cluster(private: tuple[int, ...], rate: float) -> None:
    (case,) = (case for case in TINY_CASES["rotated"] if case.name == "clusters")
    structure = build_structure(case, rows=600, private=private, bits_per_weight=rate)
    assert structure.layout.clusters > 0 and 0 in structure.layout.tier_bytes
    collisions = count_collisions(structure)
    assert collisions == 600 - len(torch.unique(structure.dense(), dim=0))
    assert collisions > 0


def test_what_a_structure_lacks_raises() -> None:
    for case in all_cases():
        structure: CompactEmbedding = build_structure(case)
        calls = {
            "project": partial(structure.project, torch.randn(1, 24)),
            "dense": structure.dense,
            "resize": partial(structure.resized, 61),
        }
        assert calls.keys() == set(ABILITIES)
        for ability in case.lacks:
            with pytest.raises(CompactEmbeddingsError):
                calls[ability]()


# By method: the most code files in a checkpoint, and their bytes. What people and scanners read has to stay small.
# Small layers bring a file of their own, and nothing else.
MOST_LAYERS_CODE = 8_000
MOST_CODE = {
    "scalar": (10, 69_000),
    "subspace": (10, 73_000),
    "factorized": (10, 73_700),
    "blocks": (13, 91_500),
    "hash": (13, 93_600),
    "rotated": (13, 97_300),
}


@pytest.mark.parametrize("method", hce.methods())
def test_a_checkpoint_holds_the_code_of_its_method_only(method: str, tmp_path: Path) -> None:
    _, compact = compress_tiny("bert", TINY_CASES[method][0])
    compact.save_pretrained(tmp_path)
    files = {file.name: file.stat().st_size for file in tmp_path.glob("*.py")}
    most_files, most_bytes = MOST_CODE[method]
    assert len(files) <= most_files and sum(files.values()) <= most_bytes, files
    assert {name for name in files if name.startswith("structure_")} == {f"structure_{method}.py"}
    assert any("hash" in name for name in files) == (method == "hash")
    assert set(compact.config.compact_code["files"]) == set(files)


def test_small_layers_bring_one_file(tmp_path: Path) -> None:
    _, compact = compress_tiny("bert", TINY_CASES["scalar"][0])
    for folder, model in (("plain", compact), ("small", hce.compress(compact, layers="int8"))):
        model.save_pretrained(tmp_path / folder)
    plain, small = (
        {file.name: file.read_text() for file in (tmp_path / name).glob("*.py")} for name in ("plain", "small")
    )
    assert small.keys() - plain.keys() == {"layers.py"} and len(small["layers.py"]) <= MOST_LAYERS_CODE
    assert small["modeling_compact.py"].replace("from .layers import CompactLinear  # noqa: F401\n", "") == plain.pop(
        "modeling_compact.py"
    )
    assert all(small[name] == text for name, text in plain.items())
