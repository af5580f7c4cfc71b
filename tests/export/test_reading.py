"""What stands for a table in a graph gives the rows and scores that the table gives."""

from __future__ import annotations

import copy

import pytest
import torch

import hf_compact_embeddings as hce
from hf_compact_embeddings.export import tables
from hf_compact_embeddings.export.reading import SortedIds
from hf_compact_embeddings.export.tables import GraphTable
from hf_compact_embeddings.modeling.structure_rotated import RotatedEmbedding

from ..cases import TINY_CASES, Case, build_structure, for_all, for_all_with_extras


@for_all_with_extras()
@torch.no_grad()
def test_rows_have_the_same_bits(case: Case, extras: dict) -> None:
    structure = build_structure(case, **extras).float()
    ids = torch.arange(structure.num_embeddings).flip(0).view(5, -1)
    table = GraphTable(copy.deepcopy(structure))
    assert torch.equal(table(ids), structure.embed(ids, structure.scale, plain=True))
    assert torch.equal(table(ids, scale=1.0), structure.embed(ids, plain=True))


@for_all("project")
@pytest.mark.parametrize("most", [0, 1 << 20], ids=["tiles", "decoded"])
@torch.no_grad()
def test_scores_are_the_same(case: Case, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "DECODED_HEAD_BYTES", most)
    structure = build_structure(case, private=(0, 7, 59), padding_idx=3, mask_padding=True, added=5).float()
    table, hidden = GraphTable(copy.deepcopy(structure)), torch.randn(2, 3, 24)
    assert table.decodes_at_once == (most > 0)
    torch.testing.assert_close(table(hidden, project=True), structure.project(hidden), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_rows_of_many_blocks() -> None:
    case = next(case for case in TINY_CASES["rotated"] if case.name == "clusters")
    structure = build_structure(case, rows=1500, bits_per_weight=5.0, tiers=4).float()
    ids = torch.arange(1500)
    assert len(structure.layout.tier_rows) > 1
    assert torch.equal(GraphTable(copy.deepcopy(structure))(ids), structure.embed(ids, plain=True))


@torch.no_grad()
def test_names_of_clusters_that_take_two_bytes() -> None:
    options = hce.RotatedConfig(clusters=300, bits_per_weight=4.0)
    structure = RotatedEmbedding(options, RotatedEmbedding.random_layout(options, 1500, 24), 1500, 24)
    structure.reset_parameters()
    ids = torch.arange(1500)
    assert structure.layout.clusters > 256
    assert torch.equal(GraphTable(copy.deepcopy(structure))(ids), structure.embed(ids, plain=True))


@pytest.mark.parametrize("count", [1, 2, 3, 7, 8, 100])
def test_sorted_ids_are_found(count: int) -> None:
    ids = torch.randperm(500)[:count].sort().values
    every = torch.arange(501)
    position, hit = SortedIds(ids)(every)
    assert torch.equal(hit, torch.isin(every, ids))
    assert torch.equal(ids[position[hit]], every[hit])
