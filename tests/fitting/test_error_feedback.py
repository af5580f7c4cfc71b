"""Rounding with error feedback costs less in the metric, and is plain rounding where columns do not correlate."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import hf_compact_embeddings as hce
from hf_compact_embeddings.evidence.sensitivity import find_sensitivity
from hf_compact_embeddings.fitting import FitSource, fit_structure
from hf_compact_embeddings.fitting.error_feedback import feedback_factor, round_with_feedback
from hf_compact_embeddings.modeling.structure_scalar import ScalarConfig

from ..tiny_models import tiny_model
from ..tools import tiny_texts, tiny_tokenizer

WIDTH = 96


def correlated_metric() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    factors = torch.randn(WIDTH, 8, generator=generator).double()
    return factors @ factors.T + 0.05 * torch.eye(WIDTH).double()


def rows(count: int = 500) -> Tensor:
    return torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(0))


def cost(error: Tensor, metric: Tensor) -> float:
    return float(((error.double() @ metric) * error).sum())


def test_errors_make_up_for_each_other() -> None:
    """Written out column by column, without blocks."""
    table, metric = rows(50), correlated_metric()
    factor = feedback_factor(metric)
    found = round_with_feedback(table, factor, lambda column, _: column.round())
    left = table.clone()
    for column in range(WIDTH):
        error = (left[:, column] - left[:, column].round()) / factor[column, column]
        left[:, column:] -= torch.outer(error, factor[column, column:])
    torch.testing.assert_close(found, left.round(), atol=0.01, rtol=0)
    assert cost(found - table, metric) < 0.3 * cost(table.round() - table, metric)


def test_without_correlations_it_is_plain_rounding() -> None:
    metric = torch.linspace(0.1, 10, WIDTH).double().diag()
    found = round_with_feedback(rows(), feedback_factor(metric), lambda column, _: column.round())
    assert torch.equal(found, rows().round())


@pytest.mark.parametrize(("bits", "group_size"), [(8, None), (4, 32), (4, 96), (2, 16)])
def test_scalar_codes_cost_less_at_the_same_bytes(bits: int, group_size: int | None) -> None:
    metric, table = correlated_metric(), rows()
    source = FitSource(table=table, metric=metric)
    errors = {}
    for name in ("plain", "auto"):
        structure = fit_structure(ScalarConfig(bits=bits, group_size=group_size, metric=name), source)
        errors[name] = cost(structure.dense().detach() - table, metric)
    assert errors["auto"] < (0.6 if bits == 2 else 0.4) * errors["plain"]


@pytest.mark.parametrize("architecture", ["llama", "llama-untied"])
def test_a_model_s_own_metric_is_used_where_it_can_be_found(architecture: str) -> None:
    model, given = tiny_model(architecture), {"tokenizer": tiny_tokenizer(), "texts": tiny_texts(100)}
    metric = find_sensitivity(given["texts"], given["tokenizer"], model).metric
    table = model.get_input_embeddings().weight.detach()

    def table_error(**options: object) -> float:
        compact = hce.compress(model, "scalar", bits=4, **options)
        return cost(compact.compact_embedding.dense().detach() - table, metric)

    assert table_error(**given) < table_error(metric="plain", **given)
    assert table_error() == table_error(metric="plain"), "without a tokenizer nothing is known"
