"""A factorized fit in a metric has the least error there, and decodes plain rows."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import hf_compact_embeddings as hce
from hf_compact_embeddings.fitting import FitSource, fit_structure
from hf_compact_embeddings.fitting.spectrum import metric_roots
from hf_compact_embeddings.modeling.errors import CompactConfigError
from hf_compact_embeddings.modeling.structure_factorized import FactorizedConfig

from ..tiny_models import tiny_model
from ..tools import tiny_texts, tiny_tokenizer

ROWS, WIDTH = 200, 16


def source(metric: Tensor | None = None, **fields) -> FitSource:
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(ROWS, WIDTH, generator=generator) @ torch.randn(WIDTH, WIDTH, generator=generator) + 0.5
    return FitSource(table, metric=metric, **fields)


def steep_metric() -> Tensor:
    """Return a metric whose large axes are not those of the table."""
    axes = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(1)).double()).Q
    return (axes * torch.logspace(2, -3, WIDTH).double()) @ axes.T


def rows_of(given: FitSource, **options) -> Tensor:
    config = FactorizedConfig(**{"rank": 5, "storage_dtype": "float32", **options})
    return fit_structure(config, given).dense().detach()


def cost(error: Tensor, metric: Tensor | None) -> float:
    root, _ = metric_roots(metric, WIDTH)
    return float((error.double() @ root).square().sum())


def test_svd_leaves_the_least_error_in_the_metric() -> None:
    metric = steep_metric()
    given = source(metric)
    plain, measured = (rows_of(given, fit="svd", metric=name) - given.table for name in ("plain", "sensitivity"))
    root, _ = metric_roots(metric, WIDTH)
    centred = (given.table.double() - given.table.double().mean(0)) @ root
    least = float(torch.linalg.svdvals(centred)[5:].square().sum())
    assert cost(measured, metric) == pytest.approx(least, rel=1e-4)
    assert cost(plain, metric) > 1.5 * least
    assert cost(plain, None) < cost(measured, None)


@pytest.mark.parametrize(
    "options",
    [{"fit": "svd"}, {}, {"hidden_width": 6}, {"preset": "paper"}],
    ids=["svd", "autoencoder", "hidden", "paper"],
)
def test_a_metric_without_a_preference_changes_nothing(options) -> None:
    plain = rows_of(source(), **options)
    # Shrinkage makes all eigenvalues 1.1; a trained fit sees rows in units of their own.
    same = rows_of(source(torch.eye(WIDTH) * 7.0), metric="sensitivity", **options)
    tolerance = 0.3 if options.get("preset") else 2e-3
    torch.testing.assert_close(same, plain, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("options", [{}, {"hidden_width": 6}, {"int8_codes": True}], ids=str)
def test_every_option_gains_in_the_metric_and_keeps_zero_rows(options) -> None:
    metric = steep_metric()
    given = source(metric)
    given.table[7] = 0
    plain, measured = (rows_of(given, metric=name, **options) for name in ("plain", "sensitivity"))
    assert cost(measured - given.table, metric) < 0.8 * cost(plain - given.table, metric)
    assert not measured[7].any()


def test_norms_that_are_restored_are_those_of_the_rows() -> None:
    given = source(steep_metric())
    rows = rows_of(given, metric="sensitivity", restore_norm=True)
    torch.testing.assert_close(rows.norm(dim=1), given.table.norm(dim=1), rtol=2e-3, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_metric_works_on_half_precision_and_leaves_the_table_alone(dtype: torch.dtype) -> None:
    given = source(steep_metric())
    half = FitSource(given.table.to(dtype), metric=given.metric)
    kept = half.table.clone()
    rows = rows_of(half, fit="svd", metric="sensitivity")
    assert torch.equal(half.table, kept)
    torch.testing.assert_close(rows, rows_of(given, fit="svd", metric="sensitivity"), atol=0.5, rtol=0)


def test_a_metric_needs_a_tokenizer() -> None:
    with pytest.raises(CompactConfigError, match="`metric` is 'sensitivity'.* needs a `tokenizer`"):
        rows_of(source(), metric="sensitivity")
    with pytest.raises(CompactConfigError, match="`metric` is 'fisher'"):
        FactorizedConfig(metric="fisher")


@torch.no_grad()
@pytest.mark.parametrize("fit", ["svd", "autoencoder"])
def test_scores_of_a_tied_head_come_closer(fit: str) -> None:
    model, tokenizer, texts = tiny_model("bert"), tiny_tokenizer(), tiny_texts(200)
    inputs = tokenizer(tiny_texts(50, seed=1), return_tensors="pt")
    inputs["input_ids"][:, 3] = tokenizer.mask_token_id
    # The input side stays as it is: what differs is the head's alone.
    states = model.cls.predictions.transform(model.bert(**inputs).last_hidden_state[:, 3])
    errors = {}
    for metric in ("plain", "sensitivity"):
        compact = hce.compress(
            model, "factorized", rank=6, fit=fit, metric=metric, frequency_power=0.0, texts=texts, tokenizer=tokenizer
        )
        table = compact.get_input_embeddings()
        errors[metric] = float((states @ (table.dense() - model.get_input_embeddings().weight).T).square().mean())
    assert errors["sensitivity"] < 0.8 * errors["plain"]
