"""What a structure reads once from its stored tables follows every change of them, also under a compiler."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from hf_compact_embeddings.fitting import FitSource, fit_structure
from hf_compact_embeddings.modeling.errors import UnsupportedArchitectureError
from hf_compact_embeddings.modeling.structure import CompactEmbedding
from hf_compact_embeddings.modeling.structure_rotated import RotatedEmbedding
from hf_compact_embeddings.modeling.tiered import TieredEmbedding

from ..cases import Case, all_cases, build_structure, compress_tiny, for_all, for_each_method

IDS = torch.tensor([[0, 3, 7], [29, 1, 0]])


def as_compiled(structure: CompactEmbedding, inputs: Tensor, project: bool = False) -> Tensor:
    """Run the branches of a compiled graph, which may not read stored tables."""
    known = set(getattr(structure, "_known", ()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.compiler, "is_compiling", lambda: True)
        found = structure(inputs, project=project).detach()
    assert set(getattr(structure, "_known", ())) == known, "a table was read"
    return found


@pytest.mark.parametrize("case", [case for case in all_cases() if case.name == "tiers"], ids=str)
def test_another_state_is_seen(case: Case) -> None:
    # Rows that differ in length are coded in tiers.
    table = torch.randn(60, 24, generator=torch.Generator().manual_seed(0)) * torch.linspace(0.2, 3, 60).unsqueeze(1)
    structure = fit_structure(case.config(), FitSource(table))
    assert isinstance(structure, TieredEmbedding) and len(structure.layout.tier_rows) > 1
    rows, other = structure(IDS), copy.deepcopy(structure)
    codes = [structure.tier_codes(tier) for tier in range(len(structure.layout.tier_rows))]
    other.set_row_codes(structure.positions().of()[0].flip(0), codes)
    structure.load_state_dict(other.state_dict())
    assert torch.equal(as_compiled(structure, IDS), other(IDS))
    assert not torch.equal(other(IDS), rows)


def test_other_clusters_are_seen() -> None:
    structure = build_structure(next(case for case in all_cases() if case.name == "clusters"))
    assert isinstance(structure, RotatedEmbedding)
    ids = torch.arange(60)
    rows, other = structure(ids), copy.deepcopy(structure)
    changes = {
        other.cluster_index: other._packed_clusters(other.cluster_of_rows().flip(0)),
        other.cluster_codes: other.cluster_codes.flip(0),
    }
    for table, change in changes.items():
        with torch.no_grad():
            table.copy_(change)
        assert not torch.equal(other(ids), rows)
        structure.load_state_dict(other.state_dict())
        assert torch.equal(as_compiled(structure, ids), other(ids))


@for_all("resize", "project")
def test_a_smaller_table_is_seen(case: Case) -> None:
    structure = build_structure(case, private=(0, 7, 59))
    hidden = torch.randn(3, 24)
    rows, scores = structure(IDS), structure(hidden, project=True)[:, :30]
    structure.resized(30)
    assert torch.equal(as_compiled(structure, IDS), rows)
    torch.testing.assert_close(as_compiled(structure, hidden, project=True), scores)


@for_all()
def test_a_structure_that_moved_is_seen(case: Case) -> None:
    structure = build_structure(case)
    rows, state = structure(IDS), copy.deepcopy(structure.state_dict())
    # As a move to another device does: all tensors are new ones.
    structure._apply(lambda tensor: tensor.clone())
    assert torch.equal(as_compiled(structure, IDS), rows)
    structure.to_empty(device="cpu")
    structure.load_state_dict(state)
    assert torch.equal(as_compiled(structure, IDS), rows)
    structure.to("meta")
    structure.to_empty(device="cpu")
    structure.load_state_dict(state)
    assert torch.equal(structure(IDS), rows)


@for_each_method()
@pytest.mark.parametrize("architecture", ["bert", "llama"])
def test_a_model_that_inference_mode_ran_can_be_trained(architecture: str, case: Case) -> None:
    _, compact = compress_tiny(architecture, case)
    # A copy has read nothing yet.
    copied = copy.deepcopy(compact)
    ids = torch.tensor([[5, 17, 89, 42]])
    with torch.inference_mode():
        copied(ids)
    copied(ids).logits.sum().backward()
    assert any(parameter.grad is not None for parameter in copied.compact_embedding.parameters())


@for_all("resize")
def test_a_structure_made_in_inference_mode_works(case: Case) -> None:
    with torch.inference_mode():
        table = torch.randn(60, 24, generator=torch.Generator().manual_seed(0))
        made = fit_structure(case.config(), FitSource(table))
        rows = made(IDS)
        made.resized(30)
        assert torch.equal(made(IDS), rows)


@for_all()
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_a_trace_holds_the_same(case: Case) -> None:
    structure = build_structure(case, private=(0, 7, 59))
    structure(IDS)
    # None of these is a private row, some of the others are.
    traced = torch.jit.trace(structure, (torch.tensor([[1, 2, 3], [4, 5, 6]]),), check_trace=False)
    assert torch.equal(traced(IDS), structure(IDS))


@for_all()
def test_ids_without_a_row_are_refused(case: Case) -> None:
    structure = build_structure(case, private=(0, 7, 59), added=5)
    for wrong in (-1, 65, 1000):
        with pytest.raises(IndexError, match=f"The id {wrong} has no row: the table has 65 rows"):
            structure(torch.tensor([[3, wrong]]))
    assert structure(torch.empty(2, 0, dtype=torch.int64)).shape == (2, 0, 24)


@for_all()
def test_its_weight_cannot_be_computed_with(case: Case) -> None:
    weight = build_structure(case).weight
    for use in (
        lambda: torch.randn(2, 24) @ weight.T,
        lambda: torch.nn.functional.linear(torch.randn(2, 24), weight),
        lambda: torch.nn.functional.embedding(IDS, weight),
        lambda: weight + 1,
    ):
        with pytest.raises(UnsupportedArchitectureError, match="computes with the table's `weight` itself"):
            use()
    assert "TableOutline((60, 24)" in repr(weight)


@for_all()
def test_a_fitted_configuration_starts_a_model_anew(case: Case) -> None:
    _, compact = compress_tiny("llama", case)
    compact.resize_token_embeddings(123)
    before, stored = copy.deepcopy(compact.config.compact_embeddings), compact.compact_embedding.dense()
    # Memory is not zeroed, but filled with NaN.
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        anew = type(compact)(compact.config)
    finally:
        torch.use_deterministic_algorithms(False)
    assert compact.config.compact_embeddings == before
    assert torch.equal(compact.compact_embedding.dense(), stored)
    structure = anew.compact_embedding
    structure.check_values()
    assert structure.num_embeddings == 123 and structure.layout.private_rows == 0
    ids = torch.tensor([[5, 17, 122, 42]])
    assert anew(ids).logits.isfinite().all() and 0 < structure.dense().abs().max() < 10
    assert structure.options == compact.compact_embedding.options
