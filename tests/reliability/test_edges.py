"""Tables at the edges of what there is: of one row or one column, constant, huge, tiny; and copies of them."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_compact_embeddings.fitting import FitSource, fit_structure
from hf_compact_embeddings.fitting.methods import make_config
from hf_compact_embeddings.modeling.errors import CompactEmbeddingsError
from hf_compact_embeddings.modeling.options import BUDGETS, StructureConfig
from hf_compact_embeddings.modeling.structure import CompactEmbedding, structure_class_of

from ..cases import Case, build_structure, for_all
from ..fuzz.attempts import load

KINDS = ("random", "zero", "constant", "huge", "subnormal", "duplicate", "large")
# What a case says of sizes would only be refused for the smallest tables: these are for them.
SMALLEST = {
    "num_subspaces": 1,
    "codebook_size": 2,
    "rank": 1,
    "parameter_ratio": None,
    "group_size": None,
    "buckets": 3,
}
MOST_BITS = 31.0


def config_for(case: Case, **changes: Any) -> StructureConfig:
    """Return a case's options with sizes for the smallest tables; what has no sizes of its own gets a budget."""
    fields = {field.name for field in dataclasses.fields(case.config())}
    sizes = {name: value for name, value in SMALLEST.items() if name in fields}
    kept = {name: value for name, value in case.options.items() if name not in (*BUDGETS, *SMALLEST)}
    budget = {} if sizes.keys() - {"codebook_size"} else {"bits_per_weight": MOST_BITS}
    return make_config(case.method, **{**kept, **sizes, **budget, **changes})


def table_of(kind: str, rows: int, width: int, seed: int) -> torch.Tensor:
    """Return a dense table (rows, width)."""
    table = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))
    if kind == "duplicate":
        return table[:1].repeat(rows, 1)
    factor = {"zero": 0.0, "constant": 0.0, "huge": 1e30, "subnormal": 1e-40, "large": 1e5}.get(kind, 1.0)
    return table * factor + (0.25 if kind == "constant" else 0.0)


def assert_reloads(structure: CompactEmbedding) -> None:
    """Demand finite rows, and that what is stored of a structure gives them again."""
    structure.round_to_storage()
    dense, width = structure.dense(), structure.embedding_dim
    assert dense.isfinite().all()
    assert structure(torch.zeros(1, width), project=True).isfinite().all()
    for shape in ((0,), (0, 3), (2, 0)):
        assert structure(torch.zeros(shape, dtype=torch.long)).shape == (*shape, width)
    assert structure(torch.zeros(0, width), project=True).shape == (0, structure.num_embeddings)
    stored = {name: value.detach().to(structure.stored_dtype(name)) for name, value in structure.state_dict().items()}
    again = load(structure.to_dict(), stored, structure.num_embeddings, width, structure.padding_idx)
    assert torch.equal(again.dense(), dense)


@for_all("project", "dense")
@settings(max_examples=12)
@given(
    kind=st.sampled_from(KINDS),
    rows=st.sampled_from((1, 2, 3, 17, 60)),
    width=st.sampled_from((1, 2, 3, 4, 9, 24)),
    storage=st.sampled_from(("float16", "float32", "bfloat16")),
    seed=st.integers(0, 99),
)
def test_a_small_or_odd_table_is_fitted_or_refused(
    case: Case, kind: str, rows: int, width: int, storage: str, seed: int
) -> None:
    try:
        config = config_for(case, storage_dtype=storage)
        structure = fit_structure(config, FitSource(table_of(kind, rows, width, seed)))
    except CompactEmbeddingsError:
        return
    assert_reloads(structure)


@for_all("project", "dense")
@settings(max_examples=12)
@given(rows=st.integers(1, 9), width=st.integers(1, 9), padding=st.booleans())
def test_a_small_random_start_is_saved_and_loaded(case: Case, rows: int, width: int, padding: bool) -> None:
    try:
        config = config_for(case, init="random")
        structure_class = structure_class_of(case.method)
        layout = structure_class.random_layout(config, rows, width)
        structure = structure_class(config, layout, rows, width, 0 if padding else None)
    except CompactEmbeddingsError:
        return
    with torch.no_grad():
        # As memory is that nobody has written to yet.
        for parameter in structure.parameters():
            parameter.fill_(torch.nan)
        for buffer in structure.buffers():
            buffer.fill_(255)
    structure.reset_parameters()
    assert_reloads(structure)


@for_all("project", "dense")
def test_copies_give_the_same_rows(case: Case) -> None:
    structure = build_structure(case, private=(0, 7))
    ids = torch.tensor([[0, 3, 7, 59]])
    rows = structure.dense()[ids]
    for other in (copy.deepcopy(structure), pickle.loads(pickle.dumps(structure))):
        assert torch.equal(other.dense()[ids], rows)
    with torch.inference_mode():
        torch.testing.assert_close(copy.deepcopy(structure)(ids), rows)
    fresh = copy.deepcopy(structure)
    with ThreadPoolExecutor(8) as threads:
        for found in threads.map(lambda _: fresh.embed(ids, plain=True).detach(), range(32)):
            assert torch.equal(found, structure.embed(ids, plain=True))


@for_all("project", "dense")
@pytest.mark.parametrize("wrong", [-1, 60, -60, 1 << 40, -(1 << 62)])
def test_an_id_without_a_row_is_an_index_error(case: Case, wrong: int) -> None:
    structure = build_structure(case)
    with pytest.raises(IndexError, match=f"{wrong}"):
        structure(torch.tensor([[0, wrong]]))
