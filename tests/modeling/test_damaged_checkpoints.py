"""A checkpoint that is incomplete, damaged or of another kind is refused when it is loaded, never later."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM

import hf_compact_embeddings as hce
from hf_compact_embeddings.modeling.codes import pack_codes

from ..cases import compress_tiny, first_cases, for_all, for_each_method
from ..tiny_models import tiny_model
from ..tools import assert_same_state

WEIGHTS, CONFIG = "model.safetensors", "config.json"
TABLE = "bert.embeddings.word_embeddings."
Tensors = dict[str, torch.Tensor]


def save(folder: Path, case, architecture: str = "bert", **options: Any) -> Path:
    _, compact = compress_tiny(architecture, case, **options)
    compact.save_pretrained(folder)
    return folder


def change_tensors(folder: Path, change: Callable[[Tensors], Any]) -> Path:
    tensors = {name: tensor.clone() for name, tensor in load_file(folder / WEIGHTS).items()}
    change(tensors)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    return folder


def change_config(folder: Path, **fields: Any) -> Path:
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(config | fields))
    return folder


def change_structure(folder: Path, **fields: Any) -> Path:
    """Change fields of the stored table, where they stand: in its layout, its options, or beside them."""
    stored = json.loads((folder / CONFIG).read_text())["compact_embeddings"]
    (table,) = stored.values()
    for name, value in fields.items():
        part = next((table[part] for part in ("layout", "options") if name in table[part]), table)
        part[name] = value
    return change_config(folder, compact_embeddings=stored)


def assert_refused(folder: Path, *words: str, auto_class: Any = AutoModelForMaskedLM, **options: Any) -> None:
    before = sorted(folder.rglob("*"))
    with pytest.raises(hce.CompactEmbeddingsError) as error:
        auto_class.from_pretrained(folder, **options)
    assert isinstance(error.value, ValueError)
    assert all(word in str(error.value) for word in words), str(error.value)
    assert sorted(folder.rglob("*")) == before


@for_all("project")
def test_missing_tensors(case, tmp_path: Path) -> None:
    folder = save(tmp_path / "whole", case)
    names = [name for name in load_file(folder / WEIGHTS) if name.startswith(TABLE)]
    assert len(names) > 1
    for name in names:
        damaged = shutil.copytree(folder, tmp_path / name)
        change_tensors(damaged, lambda tensors, name=name: tensors.pop(name))
        assert_refused(damaged, name, "lacks")
        assert_refused(damaged, name.removeprefix("bert."), auto_class=AutoModel)
        assert_refused(damaged, name, ignore_mismatched_sizes=True)


@for_all("project")
def test_tensors_of_another_shape(case, tmp_path: Path) -> None:
    folder = save(tmp_path / "whole", case)
    names = [name for name in load_file(folder / WEIGHTS) if name.startswith(TABLE)]
    for name in names:
        damaged = shutil.copytree(folder, tmp_path / name)

        def cut(tensors: Tensors, name: str = name) -> None:
            tensors[name] = tensors[name][..., :-1].contiguous()

        change_tensors(damaged, cut)
        assert_refused(damaged, name, "compact_embeddings")
        assert_refused(damaged, name, ignore_mismatched_sizes=True)


@for_each_method("project")
def test_a_dense_checkpoint_read_with_a_compact_class(case, tmp_path: Path) -> None:
    dense, compact = compress_tiny("bert", case)
    dense.save_pretrained(tmp_path)
    assert_refused(tmp_path, "`compact_embeddings`", "dense", "compress()", auto_class=hce.CompactBertForMaskedLM)
    assert_refused(tmp_path, TABLE, "dense checkpoint", auto_class=hce.CompactBertForMaskedLM, config=compact.config)


@for_each_method("project")
def test_a_dense_checkpoint_whose_config_says_compact(case, tmp_path: Path) -> None:
    folder = save(tmp_path / "compact", case)
    tiny_model("bert").save_pretrained(tmp_path / "dense")
    shutil.copyfile(tmp_path / "dense" / WEIGHTS, folder / WEIGHTS)
    assert_refused(folder, TABLE)


@for_each_method("project")
def test_a_compact_config_without_a_structure(case, tmp_path: Path) -> None:
    assert_refused(change_config(save(tmp_path, case), compact_embeddings=None), "`compact_embeddings`")


@for_each_method("project")
@pytest.mark.parametrize("version", [None, 2, "1"])
def test_an_unknown_format_version(case, version: Any, tmp_path: Path) -> None:
    assert_refused(change_structure(save(tmp_path, case), format_version=version), "`format_version`", repr(version))


@for_each_method("project")
def test_an_unknown_method_or_option(case, tmp_path: Path) -> None:
    folder = save(tmp_path, case)
    assert_refused(change_structure(folder, flavour=3), "flavour")
    assert_refused(change_structure(folder, method="unheard-of"), "`method`", "unheard-of", case.method)


@for_each_method("project")
def test_a_config_that_disagrees_about_private_rows(case, tmp_path: Path) -> None:
    folder = save(tmp_path, case)
    assert_refused(change_structure(folder, private_rows=3), "private_")
    assert_refused(change_structure(folder, private_rows=0), "private_")


@for_each_method("project")
@pytest.mark.parametrize("architecture", ["llama", "t5"])
@pytest.mark.parametrize("rows", [119, 121, 200])
def test_a_config_that_disagrees_about_the_vocabulary(case, architecture: str, rows: int, tmp_path: Path) -> None:
    """Heads without a bias hold no other tensor that could tell."""
    folder = change_config(save(tmp_path, case, architecture), vocab_size=rows)
    auto_class = AutoModelForCausalLM if architecture == "llama" else transformers.AutoModelForSeq2SeqLM
    assert_refused(folder, auto_class=auto_class)


@pytest.mark.parametrize(
    "fields",
    [
        {"num_subspaces": 5},
        {"num_subspaces": 2},
        {"num_subspaces": 25},
        {"codebook_size": 12},
        {"codebook_size": 17},
        {"coded_rows": 119},
        {"coded_rows": 121},
        {"assignment": "dispersed"},
    ],
    ids=str,
)
def test_a_subspace_config_that_disagrees_with_the_tensors(fields: dict[str, Any], tmp_path: Path) -> None:
    compact = hce.compress(tiny_model("bert"), hce.SubspaceConfig(num_subspaces=4, codebook_size=16))
    compact.save_pretrained(tmp_path)
    AutoModelForMaskedLM.from_pretrained(tmp_path)
    assert_refused(change_structure(tmp_path, **fields))


def test_codes_beyond_the_tables(tmp_path: Path) -> None:
    compact = hce.compress(tiny_model("bert"), hce.SubspaceConfig(num_subspaces=4, codebook_size=11))
    compact.save_pretrained(tmp_path)
    change_tensors(tmp_path, lambda tensors: tensors[f"{TABLE}codes"][5].fill_(0xFF))
    assert_refused(tmp_path, "`codes` holds 15", "`codebook_size` is 11")
    assert_refused(tmp_path, auto_class=AutoModel, device_map="cpu")


@pytest.mark.parametrize("field", ["tier_code_lengths", "cluster_length_counts"])
@pytest.mark.parametrize("lengths", [[1], [1, 1, 1], [0, 1, 1], [70, 70], [2, 2, 2], "ab"], ids=str)
def test_codewords_that_cannot_be_told_apart(field: str, lengths: Any, tmp_path: Path) -> None:
    compact = hce.compress(tiny_model("bert"), hce.RotatedConfig(bits_per_weight=6.0, clusters=13))
    compact.save_pretrained(tmp_path)
    assert_refused(change_structure(tmp_path, **{field: lengths}), field)


def test_codewords_of_clusters_that_do_not_add_up(tmp_path: Path) -> None:
    dense = tiny_model("bert")
    rows = dense.get_input_embeddings().weight
    with torch.no_grad():
        # Most rows are alike, so that their cluster has a short codeword.
        rows[: len(rows) // 2] = rows[0] + 1e-3 * rows[: len(rows) // 2]
    compact = hce.compress(dense, hce.RotatedConfig(bits_per_weight=6.0, clusters=13))
    compact.save_pretrained(tmp_path)
    AutoModelForMaskedLM.from_pretrained(tmp_path)
    change_tensors(tmp_path, lambda tensors: tensors[f"{TABLE}cluster_index"].fill_(0))
    assert_refused(tmp_path, "`cluster_index`", "last row's cluster")


def test_clusters_beyond_the_centroids(tmp_path: Path) -> None:
    # A random start has clusters of about one size.
    config = hce.RotatedConfig(init="random", bits_per_weight=6.0, clusters=13)
    hce.compress(tiny_model("bert"), config).save_pretrained(tmp_path)
    AutoModelForMaskedLM.from_pretrained(tmp_path)
    bits = load_file(tmp_path / WEIGHTS)[f"{TABLE}cluster_bits"]
    change_tensors(tmp_path, lambda tensors: tensors[f"{TABLE}cluster_bits"].copy_(bits.flip(0) // 2))
    assert_refused(tmp_path, "`cluster_bits`", "`cluster_bytes`")
    change_tensors(tmp_path, lambda tensors: tensors[f"{TABLE}cluster_bits"].copy_(bits))
    change_tensors(tmp_path, lambda tensors: tensors[f"{TABLE}cluster_index"].fill_(0xFF))
    assert_refused(tmp_path, "`cluster_index`")
    assert_refused(change_structure(tmp_path, clusters=12))


@for_each_method("project")
@pytest.mark.parametrize("ids", [[120, 121], [4_000_000_000, 5], [7, 7], [9, 3]], ids=str)
def test_private_ids_that_are_no_sorted_rows(case, ids: list[int], tmp_path: Path) -> None:
    counts = torch.arange(120)
    folder = save(tmp_path, case, token_counts=counts, private_rows=2)
    AutoModelForMaskedLM.from_pretrained(folder)

    def change(tensors: Tensors) -> None:
        tensors[f"{TABLE}private_ids"] = pack_codes(torch.tensor(ids).unsqueeze(-1), 32)

    assert_refused(change_tensors(folder, change), "private_ids")


@for_each_method("project")
def test_another_head_of_another_size_is_still_an_error(case, tmp_path: Path) -> None:
    """The check of the table must not hide what Transformers itself refuses."""
    _, compact = compress_tiny("bert", case, head="BertForSequenceClassification")
    compact.save_pretrained(tmp_path)
    auto_class = transformers.AutoModelForSequenceClassification
    with pytest.raises(RuntimeError, match="classifier.weight"):
        auto_class.from_pretrained(tmp_path, num_labels=5)
    model = auto_class.from_pretrained(tmp_path, num_labels=5, ignore_mismatched_sizes=True)
    assert model.classifier.weight.shape == (5, 24)
    model, info = auto_class.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]


def test_a_pickle_is_not_read_unless_it_is_asked_for(tmp_path: Path) -> None:
    _, compact = compress_tiny("bert", first_cases()[0])
    compact.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(compact.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(OSError, match="safetensors"):
        type(compact).from_pretrained(tmp_path)
    assert_same_state(type(compact).from_pretrained(tmp_path, use_safetensors=False), compact)
