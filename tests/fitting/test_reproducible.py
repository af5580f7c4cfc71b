"""A fit does not depend on how many threads made it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from hf_compact_embeddings.fitting import FitSource
from hf_compact_embeddings.fitting.autoencoder import PAPER_PRESET, AutoencoderOptions, fit_autoencoder
from hf_compact_embeddings.fitting.factorization import Factors, fit_svd
from hf_compact_embeddings.fitting.reproducible import symmetric_eigen, total
from hf_compact_embeddings.fitting.spectrum import metric_roots

# torch gives sums of more than 32,768 values to several threads.
ROWS, WIDTH = 40_000, 24


@pytest.fixture
def run_on() -> Iterator[Callable]:
    before = torch.get_num_threads()

    def run(threads: int, function: Callable) -> object:
        torch.set_num_threads(threads)
        return function()

    yield run
    torch.set_num_threads(before)


def a_source() -> FitSource:
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(ROWS, WIDTH, generator=generator) @ torch.randn(WIDTH, WIDTH, generator=generator) + 0.5
    table[3] = 0.0
    return FitSource(table, counts=1000 * torch.rand(ROWS, generator=generator) ** 4)


def tensors_of(factors: Factors) -> dict[str, Tensor]:
    hidden = {} if factors.hidden is None else vars(factors.hidden)
    return {name: value for name, value in (vars(factors) | hidden).items() if isinstance(value, Tensor)}


@pytest.mark.parametrize(
    "fit",
    [
        lambda table, weights: fit_svd(table, 4, weights),
        lambda table, weights: fit_autoencoder(table, 4, AutoencoderOptions(epochs=2), weights),
        lambda table, weights: fit_autoencoder(table, 1, AutoencoderOptions(epochs=1, hidden_width=3), weights),
        lambda table, weights: fit_autoencoder(table[:300], 4, PAPER_PRESET, weights[:300]),
    ],
    ids=["svd", "autoencoder", "hidden", "paper"],
)
def test_one_thread_and_two_fit_the_same_factors(fit, run_on) -> None:
    source = a_source()

    def fitted() -> dict[str, Tensor]:
        weights = source.row_weights(0.75)
        assert weights is not None
        return tensors_of(fit(source.table, weights))

    one, two = run_on(1, fitted), run_on(2, fitted)
    assert one.keys() == two.keys()
    assert [name for name in one if not torch.equal(one[name], two[name])] == []


def test_axes_of_one_thread_are_those_of_two(run_on) -> None:
    rows = torch.randn(500, 96, generator=torch.Generator().manual_seed(0)).double()
    for find in (lambda: symmetric_eigen(rows.T @ rows), lambda: metric_roots(rows.T @ rows, 96)):
        assert all(map(torch.equal, run_on(1, find), run_on(2, find)))
        assert torch.get_num_threads() == 2, "the number of threads is the caller's"


def test_a_total_is_that_of_one_thread_and_exact_enough(run_on) -> None:
    values = torch.rand(ROWS, generator=torch.Generator().manual_seed(0))
    one, two = run_on(1, lambda: total(values)), run_on(2, lambda: total(values))
    assert one.dtype == torch.float64 and torch.equal(one, two)
    assert float(one) == pytest.approx(float(values.double().sum()), rel=1e-12)
    assert total(torch.empty(0, 3)).tolist() == [0.0, 0.0, 0.0]
