"""Configurations check themselves, and say which field is wrong and what is allowed."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch

import hf_compact_embeddings as hce
from hf_compact_embeddings.fitting.methods import make_config
from hf_compact_embeddings.modeling.architectures import read_stored_tables
from hf_compact_embeddings.modeling.errors import CheckpointError, CompactConfigError, CompactEmbeddingsError
from hf_compact_embeddings.modeling.options import StructureLayout
from hf_compact_embeddings.modeling.structure_subspace import SubspaceEmbedding

from ..cases import build_structure, compress_tiny, for_each_method

# Fields that every method has, with values that none of them may take.
SHARED = [
    ("init", "zero", "'pretrained', 'random'"),
    ("storage_dtype", "int8", "'float16', 'float32', 'bfloat16'"),
    ("storage_dtype", None, "'float16', 'float32', 'bfloat16'"),
    ("private_rows", -1, "at least 0"),
    ("private_rows", True, "whole number"),
    ("ratio", 0.5, "at least 1"),
    ("ratio", "100", "a number"),
    ("max_bytes", 0, "at least 1"),
    ("max_bytes", 2.5, "whole number"),
    ("bits_per_weight", 0, "at least 0.0001"),
]
LAYOUT = [
    ("coded_rows", 0, "at least 1"),
    ("coded_rows", 2.0, "whole number"),
    ("private_rows", -1, "at least 0"),
    ("mask_padding", "yes", "False, True"),
    ("mask_padding", 1, "False, True"),
]
SUBSPACE = [
    ("num_subspaces", 0, "at least 1"),
    ("num_subspaces", -2, "at least 1"),
    ("num_subspaces", 1.5, "whole number"),
    ("num_subspaces", "8", "whole number"),
    ("codebook_size", 0, "at least 1"),
    ("codebook_size", (1 << 24) + 1, "at most 16,777,216"),
    ("assignment", "random", "'cluster', 'dispersed'"),
    ("frequency_power", -0.5, "at least 0"),
    ("frequency_power", float("nan"), "a number"),
    ("frequency_power", "half", "a number"),
    ("features", "hidden", "'table', 'contextual'"),
    ("unique_codes", 2, "False, True"),
    ("iterations", 0, "at least 1"),
]


def assert_names(error: pytest.ExceptionInfo[Exception], field: str, given: Any, allowed: str) -> None:
    message = str(error.value)
    assert f"`{field}`" in message and repr(given) in message and allowed in message, message
    assert isinstance(error.value, CompactEmbeddingsError) and isinstance(error.value, ValueError)


@for_each_method()
@pytest.mark.parametrize(("field", "value", "allowed"), SHARED, ids=str)
def test_shared_fields(case, field: str, value: Any, allowed: str) -> None:
    with pytest.raises(CompactConfigError) as error:
        make_config(case.method, **{field: value})
    assert_names(error, field, value, allowed)


@pytest.mark.parametrize(("field", "value", "allowed"), SUBSPACE, ids=str)
def test_fields_of_subspace(field: str, value: Any, allowed: str) -> None:
    with pytest.raises(CompactConfigError) as error:
        hce.SubspaceConfig(**{field: value})
    assert_names(error, field, value, allowed)


def test_an_unknown_method_is_told_the_known_ones() -> None:
    with pytest.raises(CompactConfigError) as error:
        make_config("subspaces")
    assert_names(error, "method", "subspaces", ", ".join(map(repr, hce.methods())))


@for_each_method()
def test_an_unknown_option_is_told_the_known_ones(case) -> None:
    with pytest.raises(CompactConfigError, match="'colour'") as error:
        make_config(case.method, colour="red", **case.options)
    assert repr(case.method) in str(error.value)
    assert all(option in str(error.value) for option in (*case.options, "storage_dtype", "private_rows"))


@for_each_method()
def test_a_method_is_no_option(case) -> None:
    with pytest.raises((CompactConfigError, TypeError)):
        type(case.config())(method="other")


@pytest.mark.parametrize(("field", "value", "allowed"), LAYOUT, ids=str)
def test_fields_of_layouts(field: str, value: Any, allowed: str) -> None:
    with pytest.raises(CompactConfigError) as error:
        StructureLayout(**{"coded_rows": 60, field: value})
    assert_names(error, field, value, allowed)


def test_a_size_may_be_a_text() -> None:
    assert hce.RotatedConfig(max_bytes="1.5MB").max_bytes == 1_500_000
    with pytest.raises(CompactConfigError, match="`max_bytes` is 'much'"):
        hce.RotatedConfig(max_bytes="much")


def test_one_budget_at_the_most() -> None:
    with pytest.raises(CompactConfigError, match="Only one of 'ratio', 'max_bytes', 'bits_per_weight'"):
        hce.ScalarConfig(ratio=8, max_bytes="1MB")


@for_each_method()
@pytest.mark.parametrize("version", [None, 0, 2, 99, "1.0", -1, True])
def test_an_unknown_format_version_is_refused(case, version: Any) -> None:
    stored = case.config().to_dict() | {"format_version": version}
    known = type(case.config()).format_version
    with pytest.raises(CheckpointError, match="`format_version`") as error:
        read_stored_tables({"table": stored})
    assert repr(version) in str(error.value) and f"1 to {known}" in str(error.value) and "'table'" in str(error.value)
    with pytest.raises(CheckpointError, match="`format_version`"):
        hce.CompactBertModel(hce.CompactBertConfig(compact_embeddings=stored))


@for_each_method()
def test_a_stored_table_without_a_method_is_refused(case) -> None:
    stored = case.config().to_dict()
    del stored["method"]
    with pytest.raises(CheckpointError, match="`method`"):
        read_stored_tables({"table": stored})


@for_each_method()
def test_more_coded_rows_than_rows(case) -> None:
    structure = build_structure(case)
    layout = dataclasses.replace(structure.layout, **rows_of(structure.layout, 61))
    with pytest.raises(CompactConfigError) as error:
        type(structure)(structure.options, layout, 60, 24)
    assert_names(error, "coded_rows", 61, "60 rows")


def rows_of(layout: StructureLayout, count: int) -> dict[str, Any]:
    """Return fields of a layout with one more row than it had."""
    tiers = getattr(layout, "tier_rows", None)
    return {"coded_rows": count} | ({} if tiers is None else {"tier_rows": (tiers[0] + 1, *tiers[1:])})


def test_more_subspaces_than_columns() -> None:
    options = hce.SubspaceConfig(num_subspaces=25)
    with pytest.raises(CompactConfigError) as error:
        SubspaceEmbedding(options, SubspaceEmbedding.layout_for(options, 60, 24), 60, 24)
    assert_names(error, "num_subspaces", 25, "24 wide")
    assert SubspaceEmbedding.layout_for(hce.SubspaceConfig(num_subspaces=24), 60, 24).num_subspaces == 24


# What an edited configuration may hold in the place of any value.
WRONG = ["8", None, 1.5, -1, 10**30, [3], [], {}, [-1], ["a"], True, float("nan"), "no such thing"]


@for_each_method()
@pytest.mark.parametrize("part", ["options", "layout"])
def test_no_edited_field_ends_in_another_error(case, part: str) -> None:
    _, compact = compress_tiny("bert", case)
    before = copy.deepcopy(compact.config.compact_embeddings)
    refused = 0
    for field in next(iter(before.values()))[part]:
        for value in [*WRONG, *([...] if part == "layout" else [])]:
            stored = copy.deepcopy(before)
            table = next(iter(stored.values()))
            if value is ...:
                del table[part][field]
            else:
                table[part][field] = value
            config = hce.CompactBertConfig.from_dict({**compact.config.to_dict(), "compact_embeddings": stored})
            try:
                with torch.device("meta"):
                    hce.CompactBertForMaskedLM(config)
            except CheckpointError as error:
                refused += 1
                assert "compact_embeddings" in str(error), error
    assert refused > 5
