"""Fitting subspace embeddings: least squares, weights, private rows, features, unique codes."""

from __future__ import annotations

import pytest
import torch

import hf_compact_embeddings as hce
from hf_compact_embeddings.evaluation.reading import count_collisions
from hf_compact_embeddings.fitting import FitSource, fit_structure
from hf_compact_embeddings.modeling.errors import CompactConfigError
from hf_compact_embeddings.modeling.structure_subspace import SubspaceEmbedding

ROWS, WIDTH = 400, 24


def table(rows: int = ROWS, width: int = WIDTH, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    # Correlated columns, as real tables have.
    return torch.randn(rows, width, generator=generator) @ torch.randn(width, width, generator=generator) / width**0.5


def fit(source: FitSource | torch.Tensor, **options) -> SubspaceEmbedding:
    source = FitSource(source) if isinstance(source, torch.Tensor) else source
    options = {"num_subspaces": 6, "codebook_size": 16, "storage_dtype": "float32", **options}
    config = hce.SubspaceConfig(**options)
    structure = fit_structure(config, source)
    assert isinstance(structure, SubspaceEmbedding)
    return structure


def error(structure: SubspaceEmbedding, dense: torch.Tensor, weights: torch.Tensor | None = None) -> float:
    squared = (structure.dense().detach() - dense).square().sum(1)
    return float((squared if weights is None else squared * weights).sum())


@pytest.mark.parametrize("assignment", ["cluster", "dispersed"])
@pytest.mark.parametrize("subspaces", [3, 5, 24])
def test_tables_are_the_least_squares_solution_of_their_codes(assignment: str, subspaces: int) -> None:
    counts = torch.rand(ROWS, generator=torch.Generator().manual_seed(5)) * 100
    dense = table()
    structure = fit(
        FitSource(dense, counts=counts), assignment=assignment, num_subspaces=subspaces, frequency_power=1.0
    ).double()
    weights = (counts + 1).double()
    structure.zero_grad()
    ((structure.dense() - dense).square().sum(1) * weights).sum().backward()
    for name, parameter in structure.named_parameters():
        scale = float(weights.sum() * dense.abs().max())
        assert float(parameter.grad.abs().max()) < 1e-5 * scale, f"{name} is not at its minimum"


def test_more_bytes_give_less_error() -> None:
    dense = table()
    errors = [error(fit(dense, num_subspaces=f), dense) for f in (2, 6, 12, 24)]
    assert errors == sorted(errors, reverse=True) and errors[-1] < errors[0] / 10
    errors = [error(fit(dense, codebook_size=n), dense) for n in (1, 4, 32, ROWS)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] == pytest.approx(0.0, abs=1e-3), "a centroid for each row is exact"


def test_clusters_beat_dispersed_tuples_of_the_same_size() -> None:
    dense = table()
    clusters = fit(dense, num_subspaces=3, codebook_size=8)
    dispersed = fit(dense, num_subspaces=3, codebook_size=8, assignment="dispersed")
    assert dispersed.codes is None and clusters.codes is not None
    assert error(clusters, dense) < 0.9 * error(dispersed, dense)


def test_frequent_tokens_are_fitted_more_closely() -> None:
    dense = table()
    counts = torch.where(torch.arange(ROWS) < 40, 10_000.0, 1.0)
    weights = counts + 1
    source = FitSource(dense, counts=counts)
    errors = [error(fit(source, frequency_power=power), dense, weights) for power in (0.0, 0.5, 1.0)]
    assert errors[0] > 1.2 * errors[1] > 1.2 * errors[2]
    assert error(fit(source, frequency_power=0.0), dense) < error(fit(source, frequency_power=1.0), dense)
    assert error(fit(source, frequency_power=0.0), dense) == pytest.approx(error(fit(dense), dense), rel=0.05)


def test_seeds_repeat_and_differ() -> None:
    one, again, other = (fit(FitSource(table(), seed=seed)).dense() for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_private_rows_are_exact_and_weigh_nothing() -> None:
    dense = table()
    wild = dense.clone()
    wild[[3, 9]] *= 1_000
    ids = torch.tensor([3, 9])
    structure = fit(FitSource(wild, private_ids=ids))
    assert torch.equal(structure.dense()[ids], wild[ids])
    assert float(structure.codebooks.detach().abs().max()) < 2 * float(dense.abs().max())
    others = torch.ones(ROWS)
    others[ids] = 0.0
    assert error(structure, dense, others) < 1.05 * error(fit(dense), dense, others)


def test_every_row_may_be_private() -> None:
    dense = table(20)
    structure = fit(FitSource(dense, private_ids=torch.arange(20)))
    assert torch.equal(structure.dense(), dense)


def test_other_features_decide_the_tuples_and_the_rows_the_tables() -> None:
    dense = table()
    kinds = torch.randint(4, (ROWS,), generator=torch.Generator().manual_seed(1))
    features = torch.nn.functional.one_hot(kinds, 4).float().repeat(1, 6) * 10
    source = FitSource(dense, features=features)
    structure = fit(source, num_subspaces=2, codebook_size=4, features="contextual")
    tuples = structure.codes_of(torch.arange(ROWS))
    for kind in range(4):
        assert len(tuples[kinds == kind].unique(dim=0)) == 1
        torch.testing.assert_close(
            structure.dense()[kinds == kind][0].detach(), dense[kinds == kind].mean(0), atol=1e-5, rtol=1e-4
        )
    assert count_collisions(structure) == ROWS - 4
    assert not torch.equal(tuples, fit(source, num_subspaces=2, codebook_size=4).codes_of(torch.arange(ROWS)))


def test_features_of_another_width() -> None:
    features = torch.randn(ROWS, 10)
    assert fit(FitSource(table(), features=features), features="contextual").dense().shape == (ROWS, WIDTH)
    with pytest.raises(CompactConfigError, match="`num_subspaces` is 6.*5 wide"):
        fit(FitSource(table(), features=features[:, :5]), features="contextual")


@pytest.mark.parametrize(("subspaces", "entries"), [(2, 21), (2, 32), (5, 4)])
def test_unique_codes(subspaces: int, entries: int) -> None:
    dense = table()
    options = {"num_subspaces": subspaces, "codebook_size": entries}
    plain, unique = fit(dense, **options), fit(dense, unique_codes=True, **options)
    assert count_collisions(plain) > 0
    assert count_collisions(unique) == 0
    tuples = unique.codes_of(torch.arange(ROWS))
    assert len(tuples.unique(dim=0)) == ROWS
    assert error(unique, dense) < float((dense - dense.mean(0)).square().sum()), "better than the mean alone"


def test_unique_codes_that_cannot_be() -> None:
    with pytest.raises(CompactConfigError, match="`unique_codes`.*400.*2 subspaces of 16 rows.*256"):
        fit(table(), num_subspaces=2, unique_codes=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_tables_of_other_dtypes(dtype: torch.dtype) -> None:
    dense = table().to(dtype)
    structure = fit(FitSource(dense, private_ids=torch.tensor([4])))
    assert structure.dtype == torch.float32
    assert torch.equal(structure.dense()[4], dense[4].float())
    assert error(structure, dense.float()) == pytest.approx(error(fit(dense.float()), dense.float()), rel=0.1)


def test_the_source_is_left_alone() -> None:
    dense, counts, ids = table(), torch.rand(ROWS), torch.tensor([2, 5])
    copies = dense.clone(), counts.clone(), ids.clone()
    structure = fit(FitSource(dense, counts=counts, private_ids=ids))
    assert all(torch.equal(one, other) for one, other in zip((dense, counts, ids), copies, strict=True))
    with torch.no_grad():
        structure.private_vectors.zero_()
    assert torch.equal(dense, copies[0])


def test_too_few_rows_for_the_codebook() -> None:
    with pytest.raises(CompactConfigError, match="`codebook_size` is 256.*only 120 rows"):
        fit(table(120), codebook_size=None)
    fit(table(16))
    with pytest.raises(CompactConfigError, match="`codebook_size` is 16.*only 15 rows"):
        fit(table(15))


def test_contextual_features_must_be_given() -> None:
    with pytest.raises(CompactConfigError, match="`features` is 'contextual'.*need a `tokenizer`"):
        fit(table(), features="contextual")


def test_the_layout_says_what_was_chosen_and_the_options_what_was_asked() -> None:
    structure = fit(FitSource(table(), private_ids=torch.tensor([1])), codebook_size=None)
    layout = structure.layout
    assert (layout.coded_rows, layout.private_rows, layout.codebook_size) == (ROWS, 1, 256)
    assert not layout.mask_padding and layout.stored_codes
    assert structure.options == hce.SubspaceConfig(num_subspaces=6, storage_dtype="float32")
