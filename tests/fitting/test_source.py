"""What a fit starts from is checked before anything is computed."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from hf_compact_embeddings.fitting import FitSource, fit_structure
from hf_compact_embeddings.modeling.errors import CompactConfigError

from ..cases import Case, for_all, for_each_method

GOOD = torch.randn(60, 24)


def holding(value: float, row: int = 59) -> torch.Tensor:
    table = GOOD.clone()
    table[row, 7] = value
    return table


BAD = {
    "no rows": ({"table": torch.empty(0, 24)}, "`table`", "(0, 24)"),
    "no columns": ({"table": torch.empty(60, 0)}, "`table`", "(60, 0)"),
    "one axis": ({"table": torch.randn(60)}, "`table`", "2-D"),
    "three axes": ({"table": torch.randn(3, 4, 5)}, "`table`", "2-D"),
    "NaN": ({"table": holding(float("nan"))}, "`table`", "NaN"),
    "infinity": ({"table": holding(float("-inf"), row=0)}, "`table`", "infinity"),
    "integers": ({"table": torch.ones(60, 24, dtype=torch.int64)}, "`table`", "no floats"),
    "too few counts": ({"counts": torch.ones(59)}, "`token_counts`", "60 rows"),
    "counts of two axes": ({"counts": torch.ones(60, 1)}, "`token_counts`", "(60, 1)"),
    "negative counts": ({"counts": -torch.ones(60)}, "`token_counts`", "negative"),
    "NaN counts": ({"counts": torch.full((60,), float("nan"))}, "`token_counts`", "finite"),
    "too few features": ({"features": torch.ones(59, 8)}, "`features`", "59"),
}


@pytest.mark.parametrize(("fields", "field", "word"), BAD.values(), ids=BAD)
def test_bad_sources(fields: dict[str, Any], field: str, word: str) -> None:
    with pytest.raises(CompactConfigError) as error:
        FitSource(**{"table": GOOD, **fields})
    assert field in str(error.value) and word in str(error.value)


def test_values_far_down_a_large_table_are_checked() -> None:
    table = torch.zeros(20_000, 4)
    table[19_999, 3] = float("inf")
    with pytest.raises(CompactConfigError, match="`table` holds NaN or infinity"):
        FitSource(table)


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_weights_follow_the_counts(power: float) -> None:
    counts = torch.tensor([0, 3, 8, 99])
    weights = FitSource(GOOD[:4], counts=counts).row_weights(power)
    wanted = torch.tensor([1.0, 4.0, 9.0, 100.0]) ** power
    torch.testing.assert_close(weights, wanted / wanted.mean())


def test_private_rows_weigh_nothing() -> None:
    assert FitSource(GOOD).row_weights(0.5) is None
    weights = FitSource(GOOD, private_ids=torch.tensor([3, 8])).row_weights(0.5)
    assert (weights == 0).nonzero().flatten().tolist() == [3, 8]
    assert len(weights[weights > 0].unique()) == 1
    assert FitSource(GOOD[:2], private_ids=torch.arange(2)).row_weights(0.5) is None


@for_all()
def test_a_fit_uses_its_counts_and_seed(case: Case) -> None:
    for init in ("pretrained", "random"):
        torch.manual_seed(0)
        structure = fit_structure(case.config(init=init), FitSource(GOOD, counts=torch.arange(60), seed=3))
        assert structure.num_embeddings == 60 and structure.embedding_dim == 24
        assert structure(torch.arange(60)).isfinite().all()


@for_each_method("dense")
def test_a_fit_is_closer_than_chance(case: Case) -> None:
    fitted = fit_structure(case.config(), FitSource(GOOD)).dense()
    torch.manual_seed(0)
    random = fit_structure(case.config(init="random"), FitSource(GOOD)).dense()
    spread = (GOOD - GOOD.mean(0)).square().sum()
    assert (fitted - GOOD).square().sum() < spread < (random - GOOD).square().sum() * 1.1


@for_all()
def test_constant_tables_can_be_fitted(case: Case) -> None:
    for value in (0.0, 1.5):
        structure = fit_structure(case.config(), FitSource(torch.full((60, 24), value)))
        rows = structure(torch.arange(60))
        torch.testing.assert_close(rows, torch.full((60, 24), value), atol=1e-3, rtol=1e-2)


@for_each_method()
def test_values_beyond_the_storage_are_refused(case: Case) -> None:
    table = torch.randn(60, 24, generator=torch.Generator().manual_seed(0))
    table[7] *= 1e6
    dispersed_or_hashed = fit_structure(case.config(storage_dtype="bfloat16"), FitSource(table))
    assert dispersed_or_hashed.dense().isfinite().all()
    try:
        rows = fit_structure(case.config(storage_dtype="float16"), FitSource(table)).dense()
    except CompactConfigError as error:
        assert "`storage_dtype` is 'float16', but" in str(error) and "take bfloat16" in str(error)
    else:
        assert rows.isfinite().all()


def test_tensors_are_taken_to_the_cpu() -> None:
    class Elsewhere(torch.Tensor):
        """Stands for a tensor on a GPU."""

        def cpu(self) -> torch.Tensor:
            return self.as_subclass(torch.Tensor)

    def there(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.as_subclass(Elsewhere)

    source = FitSource(
        there(torch.randn(6, 4)),
        counts=there(torch.ones(6)),
        features=there(torch.randn(6, 3)),
        metric=there(torch.eye(4)),
        private_ids=there(torch.tensor([2])),
    )
    for tensor in (source.table, source.counts, source.features, source.metric, source.private_ids):
        assert type(tensor) is torch.Tensor


def test_what_is_found_once_is_found_again_for_anything_else() -> None:
    table = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    source = FitSource(table, counts=torch.ones(20))
    asked: list[int] = []

    def find() -> int:
        asked.append(1)
        return len(asked)

    assert source.once("axes", find) == source.once("axes", find) == 1
    assert dataclasses.replace(source, max_bytes=100).once("axes", find) == 1, "a budget changes no axes"
    assert dataclasses.replace(source, counts=torch.ones(20)).once("axes", find) == 1, "the same counts, once more"
    changes = {
        "table": table + 1,
        "counts": torch.arange(20.0),
        "multiplicity": torch.full((20,), 2.0),
        "metric": torch.eye(4),
        "private_ids": torch.tensor([3]),
        "tied": True,
        "seed": 1,
    }
    for number, (field, value) in enumerate(changes.items()):
        assert dataclasses.replace(source, **{field: value}).once("axes", find) == 2 * number + 2, field
        assert source.once("axes", find) == 2 * number + 3, "and that is not what the first one gets"
    assert source.once("frame", find) == len(asked), "another name is another thing"


def test_a_large_table_is_looked_through_for_nan_once() -> None:
    table = torch.randn(20, 4)
    source = FitSource(table)
    table[3, 2] = torch.nan
    assert dataclasses.replace(source, seed=1).table is table, "as a plan does dozens of times"
    with pytest.raises(CompactConfigError, match="NaN"):
        dataclasses.replace(source, table=table.clone())
    with pytest.raises(CompactConfigError, match="NaN"):
        FitSource(table)
