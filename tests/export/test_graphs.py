"""Graphs of tables and of whole models give what the models give, at any batch and length, with stock operators."""

from __future__ import annotations

import copy
from pathlib import Path

import onnx
import pytest
import torch

import hf_compact_embeddings as hce
from hf_compact_embeddings.export import tables
from hf_compact_embeddings.export.tables import GraphTable

from ..cases import EXTRAS, TINY_CASES, Case, build_structure, compress_tiny, first_cases
from .graphs import SHAPES, random_inputs, run_graph, write_look_up

ROTATED, PRODUCTS = TINY_CASES["rotated"][0], TINY_CASES["subspace"][0]


# All of those whose rows are read by shifts, or by a reader of the graph's own; of the others one.
TABLES = {
    str(case): case for case in [*first_cases(), *TINY_CASES["rotated"], *TINY_CASES["subspace"], *TINY_CASES["scalar"]]
}


@pytest.mark.parametrize("case", TABLES.values(), ids=TABLES)
@torch.no_grad()
def test_a_table_in_a_graph(case: Case, tmp_path: Path) -> None:
    structure = build_structure(case, **EXTRAS["everything"]).float()
    write_look_up(GraphTable(copy.deepcopy(structure)), tmp_path / "table.onnx")
    for ids in (torch.arange(65).view(5, 13), torch.tensor([[64]])):
        rows = torch.from_numpy(run_graph(tmp_path / "table.onnx", {"input_ids": ids})["rows"])
        torch.testing.assert_close(rows, structure.embed(ids, structure.scale, plain=True), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("architecture", "head", "case", "most", "opset"),
    [
        pytest.param("bert", "BertModel", ROTATED, 1 << 20, 18, id="encoder"),
        pytest.param("xlm-roberta", "XLMRobertaModel", PRODUCTS, 1 << 20, 21, id="encoder-newest-opset"),
        pytest.param("bert", "BertForMaskedLM", ROTATED, 1 << 20, 18, id="masked-lm-decoded"),
        pytest.param("llama", "LlamaForCausalLM", ROTATED, 0, 18, id="causal-lm-tiles"),
        pytest.param("llama", "LlamaForCausalLM", PRODUCTS, 1 << 20, 20, id="causal-lm-decoded"),
    ],
)
@torch.no_grad()
def test_a_model_in_a_graph(
    architecture: str, head: str, case: Case, most: int, opset: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "DECODED_HEAD_BYTES", most)
    monkeypatch.setattr(tables, "TILES", 3)
    _, compact = compress_tiny(architecture, case, head)
    exported = hce.export_onnx(compact, tmp_path / "out", opset=opset)
    path = tmp_path / "out" / "onnx" / "model.onnx"
    scored = head != "BertModel" and head != "XLMRobertaModel"
    assert exported.head == (None if not scored else "decoded" if most else "tiles")
    assert exported.outputs == (["logits"] if scored else ["last_hidden_state"])
    for batch, length in SHAPES:
        inputs = random_inputs(120, batch, length)
        wanted = compact(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])[0]
        given = torch.from_numpy(run_graph(path, inputs)[exported.outputs[0]])
        torch.testing.assert_close(given, wanted, atol=1e-4, rtol=1e-4)
    graph = onnx.load(path)
    assert {domain.domain for domain in graph.opset_import if domain.domain} == set()
    assert [domain.version for domain in graph.opset_import] == [opset]


@torch.no_grad()
def test_torch_export_leaves_batch_and_length_free() -> None:
    _, compact = compress_tiny("bert", ROTATED, "BertModel")
    axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length", max=64)}
    sample = random_inputs(120, 3, 7)
    program = torch.export.export(compact, (), kwargs=sample, dynamic_shapes=dict.fromkeys(sample, axes))
    for batch, length in SHAPES:
        inputs = random_inputs(120, batch, length)
        states = program.module()(**inputs).last_hidden_state
        torch.testing.assert_close(states, compact(**inputs).last_hidden_state, atol=1e-5, rtol=1e-5)
