"""A model has a set of compact tables: all of them are stored by their paths, and come back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from transformers import PreTrainedModel

from hf_compact_embeddings.fitting import FitSource, fit_structure
from hf_compact_embeddings.modeling.errors import CheckpointError
from hf_compact_embeddings.modeling.modeling_compact import model_class

from ..cases import TINY_CASES, Case, compress_tiny, for_each_method
from ..tools import assert_same_outputs, assert_same_state

WORDS, POSITIONS = "bert.embeddings.word_embeddings", "bert.embeddings.position_embeddings"


def model_with_two_tables(case: Case) -> PreTrainedModel:
    """Return a compact BERT whose positions are compact too, by another method than its words."""
    _, model = compress_tiny("bert", case)
    second = TINY_CASES["scalar" if case.method == "subspace" else "subspace"][0]
    native = model.get_submodule(POSITIONS)
    model.set_submodule(POSITIONS, fit_structure(second.config(), FitSource(native.weight.detach())))
    return model.eval()


@for_each_method()
def test_all_tables_come_back_bit_by_bit(case: Case, tmp_path: Path) -> None:
    model = model_with_two_tables(case)
    assert list(model.compact_tables) == [WORDS, POSITIONS]
    assert model.input_table_path == WORDS
    model.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())["compact_embeddings"]
    assert stored == {path: json.loads(json.dumps(table.to_dict())) for path, table in model.compact_tables.items()}
    structures = {f"structure_{table['method']}.py" for table in stored.values()}
    assert {file.name for file in tmp_path.glob("structure_*.py")} == structures and len(structures) == 2
    loaded, info = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert list(loaded.compact_tables) == [WORDS, POSITIONS]
    assert_same_state(loaded, model)
    assert_same_outputs(loaded, model)


@for_each_method()
def test_a_base_model_finds_all_tables_without_the_first_part_of_their_paths(case: Case, tmp_path: Path) -> None:
    model = model_with_two_tables(case)
    model.save_pretrained(tmp_path / "head")
    base = model_class(transformers.BertModel).from_pretrained(tmp_path / "head", add_pooling_layer=False)
    short = [path.removeprefix("bert.") for path in (WORDS, POSITIONS)]
    assert list(base.compact_tables) == list(base.config.compact_embeddings) == short
    assert_same_state(base, model.bert)
    # And back: a head finds the tables of a base model under its own, longer paths.
    base.save_pretrained(tmp_path / "base")
    again = type(model).from_pretrained(tmp_path / "base")
    assert list(again.compact_tables) == list(again.config.compact_embeddings) == [WORDS, POSITIONS]
    assert_same_state(again.bert, model.bert)


@pytest.mark.parametrize("path", [WORDS, POSITIONS])
def test_an_error_names_the_table(path: str, tmp_path: Path) -> None:
    model = model_with_two_tables(TINY_CASES["scalar"][0])
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["compact_embeddings"][path]["layout"]["coded_rows"] = 10_000
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=f"table '{path}': `coded_rows` is"):
        type(model).from_pretrained(tmp_path)


@for_each_method()
def test_a_random_start_has_all_tables(case: Case) -> None:
    model = model_with_two_tables(case)
    model.config.compact_embeddings = {path: table.to_dict() for path, table in model.compact_tables.items()}
    torch.manual_seed(0)
    fresh = type(model)(model.config).eval()
    assert list(fresh.compact_tables) == [WORDS, POSITIONS]
    for path, table in fresh.compact_tables.items():
        assert table.options == model.compact_tables[path].options
        assert table.dense().isfinite().all() and table.dense().std() > 0
