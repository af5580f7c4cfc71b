"""Configurations check themselves, and say which field is wrong and what is allowed."""

from __future__ import annotations

from typing import Any

import pytest

import hf_compact_embeddings as hce
from hf_compact_embeddings.modeling.errors import CheckpointError, CompactConfigError, CompactEmbeddingsError
from hf_compact_embeddings.modeling.structure import FORMAT_VERSION, config_from_dict, make_config

from ..cases import for_each_method

# Fields that every method has, with values that none of them may take.
SHARED = [
    ("init", "zero", "'pretrained', 'random'"),
    ("storage_dtype", "int8", "'float32', 'float16', 'bfloat16'"),
    ("storage_dtype", None, "'float32', 'float16', 'bfloat16'"),
    ("coded_rows", 0, "at least 1"),
    ("coded_rows", 2.0, "whole number"),
    ("private_rows", -1, "at least 0"),
    ("private_rows", True, "whole number"),
    ("mask_padding", "yes", "True, False"),
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
    ("unique_codes", 2, "True, False"),
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


@for_each_method()
@pytest.mark.parametrize("version", [None, 0, FORMAT_VERSION + 1, 99, "1.0", -1])
def test_an_unknown_format_version_is_refused(case, version: Any) -> None:
    stored = case.config().to_dict() | {"format_version": version}
    with pytest.raises(CheckpointError, match="`format_version`") as error:
        config_from_dict(stored)
    assert repr(version) in str(error.value) and f"1 to {FORMAT_VERSION}" in str(error.value)
    with pytest.raises(CheckpointError, match="`format_version`"):
        hce.CompactBertModel(hce.CompactBertConfig(compact_embeddings=stored))


@for_each_method()
def test_a_stored_config_without_a_method_is_refused(case) -> None:
    stored = case.config().to_dict()
    del stored["method"]
    with pytest.raises(CompactConfigError, match="`method`"):
        config_from_dict(stored)


@for_each_method()
def test_more_coded_rows_than_rows(case) -> None:
    with pytest.raises(CompactConfigError) as error:
        case.config(coded_rows=61).resolved(60, 24)
    assert_names(error, "coded_rows", 61, "60 rows")


def test_more_subspaces_than_columns() -> None:
    with pytest.raises(CompactConfigError) as error:
        hce.SubspaceConfig(num_subspaces=25).resolved(60, 24)
    assert_names(error, "num_subspaces", 25, "24 wide")
    assert hce.SubspaceConfig(num_subspaces=24).resolved(60, 24).num_subspaces == 24
