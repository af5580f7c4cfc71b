"""Growing and shrinking a structure keeps every row that stays."""

from __future__ import annotations

import json

import pytest
import torch

from hf_compact_embeddings.modeling.architectures import read_stored_tables
from hf_compact_embeddings.modeling.errors import CompactConfigError
from hf_compact_embeddings.modeling.structure import CompactEmbedding

from ..cases import EXTRAS, Case, build_structure, for_all, for_all_with_extras


def rebuilt(structure: CompactEmbedding) -> CompactEmbedding:
    """Return what a reader makes of the configuration and the tensors alone."""
    options, layout = read_stored_tables({"table": json.loads(json.dumps(structure.to_dict()))})["table"]
    assert layout is not None
    copy = type(structure)(
        options, layout, structure.num_embeddings, structure.embedding_dim, structure.padding_idx, structure.scale
    )
    copy.load_state_dict(structure.state_dict())
    return copy


def assert_consistent(structure: CompactEmbedding, wanted: torch.Tensor) -> None:
    # A method that multiplies matrices may round otherwise when they have another shape.
    torch.testing.assert_close(structure.dense(), wanted, atol=1e-6, rtol=1e-6)
    assert structure.weight.shape == wanted.shape
    hidden = torch.randn(3, structure.embedding_dim)
    torch.testing.assert_close(structure.project(hidden), hidden @ wanted.T, atol=1e-4, rtol=1e-4)
    assert torch.equal(rebuilt(structure).dense(), structure.dense())


@for_all_with_extras("resize", "project", "dense")
@pytest.mark.parametrize("rows", [59, 8, 1])
def test_shrinking_drops_the_last_rows(case: Case, extras: dict, rows: int) -> None:
    structure = build_structure(case, **extras)
    before, bytes_before = structure.dense().detach(), structure.nbytes
    assert structure.resized(rows) is structure
    assert_consistent(structure, before[:rows])
    assert structure.nbytes <= bytes_before


@for_all_with_extras("resize", "project", "dense")
def test_growing_adds_the_mean_row(case: Case, extras: dict) -> None:
    structure = build_structure(case, **extras)
    before = structure.dense().detach()
    structure.resized(len(before) + 3)
    added = structure.dense().detach()[len(before) :]
    torch.testing.assert_close(added, before.mean(0).expand(3, -1), atol=1e-5, rtol=1e-5)
    assert_consistent(structure, torch.cat([before, added]))


@for_all_with_extras("resize", "project", "dense")
def test_growing_stores_given_rows_exactly(case: Case, extras: dict) -> None:
    structure = build_structure(case, **extras)
    before, rows = structure.dense().detach(), torch.randn(4, 24)
    structure.resized(len(before) + 4, rows)
    assert_consistent(structure, torch.cat([before, rows]))


@for_all_with_extras("resize", "project", "dense")
def test_down_and_up_again(case: Case, extras: dict) -> None:
    structure = build_structure(case, **extras)
    before, rows = structure.dense().detach(), torch.randn(10, 24)
    structure.resized(50).resized(60, rows).resized(55)
    assert_consistent(structure, torch.cat([before[:50], rows[:5]]))


@for_all("resize")
def test_the_same_size_changes_nothing(case: Case) -> None:
    structure = build_structure(case, **EXTRAS["everything"])
    before, stored = structure.dense(), structure.to_dict()
    structure.resized(structure.num_embeddings)
    assert structure.to_dict() == stored
    assert torch.equal(structure.dense(), before)


@for_all("resize")
def test_frozen_rows_stay_frozen_and_dtypes_stay(case: Case) -> None:
    structure = build_structure(case, private=(2,)).half().requires_grad_(False)
    structure.resized(70)
    assert not any(parameter.requires_grad for parameter in structure.parameters())
    assert {parameter.dtype for parameter in structure.parameters()} == {torch.float16}


@for_all("resize")
def test_rows_added_to_a_frozen_structure_can_be_trained(case: Case) -> None:
    structure = build_structure(case).requires_grad_(False)
    structure.resized(70)
    assert structure.private_vectors is not None
    structure.private_vectors.requires_grad_(True)
    structure(torch.tensor([65])).sum().backward()
    assert structure.private_vectors.grad.abs().sum() > 0


@for_all("resize")
@pytest.mark.parametrize("rows", [0, -3])
def test_a_table_needs_a_row(case: Case, rows: int) -> None:
    structure = build_structure(case)
    with pytest.raises(CompactConfigError, match="num_embeddings"):
        structure.resized(rows)
    assert structure.dense().shape == (60, 24)
