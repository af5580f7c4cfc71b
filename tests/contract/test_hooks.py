"""Whoever hooks, wraps or compiles the table acts on the look-up and on the tied head alike."""

from __future__ import annotations

import copy

import pytest
import torch
from accelerate import cpu_offload

from ..cases import (
    EXTRAS,
    Case,
    build_structure,
    compress_tiny,
    for_all,
    for_all_with_extras,
    for_each_method,
)
from ..tiny_models import tiny_inputs
from ..tools import assert_same_outputs, outputs_of, skip_unless_compiled_whole


@for_each_method("project")
@pytest.mark.parametrize(
    ("architecture", "calls"), [("bert", 2), ("llama", 2), ("llama-untied", 1), ("t5", 3), ("bart", 3)]
)
def test_hooks_on_the_table_see_every_use(architecture: str, calls: int, case: Case) -> None:
    _, compact = compress_tiny(architecture, case)
    before = outputs_of(compact)[0]
    seen = []
    compact.get_input_embeddings().register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    assert torch.equal(outputs_of(compact)[0], before)
    assert len(seen) == calls


@for_each_method("project")
@pytest.mark.parametrize("architecture", ["bert", "llama", "t5"])
def test_offloaded_weights_reach_both_sides(architecture: str, case: Case) -> None:
    _, compact = compress_tiny(architecture, case)
    offloaded = cpu_offload(copy.deepcopy(compact), execution_device=torch.device("cpu"), offload_buffers=True)
    assert all(tensor.is_meta for tensor in offloaded.get_input_embeddings().state_dict().values())
    for left, right in zip(outputs_of(offloaded), outputs_of(compact), strict=True):
        torch.testing.assert_close(left, right, atol=1e-5, rtol=1e-5)


@for_all_with_extras("project")
def test_what_is_compiled_computes_the_same(case: Case, extras: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled graphs take a branch of their own, with shapes that do not depend on the data."""
    structure = build_structure(case, **extras)
    ids, hidden = torch.tensor([[0, 3, 7], [59, 1, 0]]), torch.randn(3, 24)
    rows, scores = structure(ids), structure(hidden, project=True)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert torch.equal(structure(ids), rows)
    assert torch.equal(structure(hidden, project=True), scores)


@for_all("project")
def test_look_up_and_scores_are_one_graph_each(case: Case) -> None:
    structure = build_structure(case, **EXTRAS["everything"])
    ids, hidden = torch.tensor([[0, 3, 7], [59, 1, 0]]), torch.randn(3, 24)
    rows, scores = structure(ids), structure(hidden, project=True)
    torch._dynamo.reset()
    compiled = torch.compile(structure, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(ids), rows)
    torch.testing.assert_close(compiled(hidden, project=True), scores)


@for_each_method("project")
def test_a_whole_model_is_one_graph(case: Case) -> None:
    skip_unless_compiled_whole()
    _, compact = compress_tiny("bert", case)
    torch._dynamo.reset()
    compiled = torch.compile(compact, backend="aot_eager", fullgraph=True)
    outputs = compiled(**tiny_inputs(compact)).logits
    torch.testing.assert_close(outputs.detach(), outputs_of(compact)[0], atol=1e-5, rtol=1e-5)
    outputs.square().mean().backward()
    assert all(parameter.grad is not None for parameter in compact.get_input_embeddings().parameters())


@for_each_method("project")
def test_the_head_follows_a_table_that_is_replaced(case: Case) -> None:
    _, compact = compress_tiny("llama", case)
    _, other = compress_tiny("llama", case, seed=5)
    with torch.no_grad():
        for parameter in other.get_input_embeddings().parameters():
            parameter.mul_(1.5)
    hidden = torch.randn(2, 24)
    compact.set_input_embeddings(copy.deepcopy(other.get_input_embeddings()))
    assert torch.equal(compact.get_output_embeddings()(hidden), other.get_input_embeddings()(hidden, project=True))
    other_body = copy.deepcopy(other)
    other_body.model.layers, other_body.model.norm = compact.model.layers, compact.model.norm
    assert_same_outputs(compact, other_body)
