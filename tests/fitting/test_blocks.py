"""Fitting block embeddings: the plan of blocks and tiers, budgets, weights, metrics, predictions."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

import hf_compact_embeddings as hce
from hf_compact_embeddings.evaluation.reading import count_collisions
from hf_compact_embeddings.fitting import FitSource, fit_structure, method_of
from hf_compact_embeddings.fitting.allocation import RowStatistics, row_statistics
from hf_compact_embeddings.fitting.block_plan import BlockPlan, BlockSizes, code_gains
from hf_compact_embeddings.fitting.block_plan import plan_blocks as plan_within
from hf_compact_embeddings.fitting.fit_blocks import _candidates, _layout
from hf_compact_embeddings.fitting.methods import stored_bytes
from hf_compact_embeddings.fitting.principal_axes import energies, principal_axes
from hf_compact_embeddings.fitting.spectrum import gap_db
from hf_compact_embeddings.modeling.errors import CheckpointError, CompactConfigError
from hf_compact_embeddings.modeling.structure_blocks import BlocksEmbedding

from ..cases import TINY_CASES, build_structure
from .test_fit_rotated import relative_error, spectrum_table

ROWS, WIDTH = 3000, 48
SIZES = BlockSizes(entries=64, value_bytes=1, axis_bytes=5, float_bytes=2, coded_basis=True)


def fit(table: torch.Tensor, max_bytes: int = 24_000, source: dict | None = None, **options) -> BlocksEmbedding:
    options = {"codebook_size": 64, "max_bytes": max_bytes, **options}
    structure = fit_structure(hce.BlocksConfig(**options), FitSource(table, **(source or {})))
    assert isinstance(structure, BlocksEmbedding)
    structure.check_values()
    return structure


def error(table: torch.Tensor, structure: BlocksEmbedding, weights: torch.Tensor | None = None) -> float:
    return relative_error(table, structure.dense().detach(), weights)


def statistics(table: torch.Tensor, weights: torch.Tensor | None = None) -> RowStatistics:
    weights = torch.ones(len(table)) if weights is None else weights
    axes = principal_axes(table, weights)
    order = (energies(table, axes) * weights).argsort(descending=True, stable=True)
    return row_statistics(table.__getitem__, weights, order, axes)


def bytes_of(plan: BlockPlan) -> int:
    config = hce.BlocksConfig(codebook_size=SIZES.entries)
    return stored_bytes(config, _layout(config, plan, WIDTH), WIDTH)


def plan_blocks(spread: RowStatistics, max_bytes: int, tiers: int, sizes: BlockSizes) -> BlockPlan:
    return plan_within(spread, max_bytes, tiers, sizes, bytes_of)


@pytest.mark.parametrize("options", [{}, {"basis": "float16"}, {"codebooks": "float16"}, {"storage_dtype": "float32"}])
def test_the_budget_is_kept_and_spent(options: dict) -> None:
    structure = fit(spectrum_table(), 24_000, **options)
    # One block more for some rows is not always better than none for any.
    assert 0.92 * 24_000 < structure.nbytes <= 24_000


def test_what_is_left_of_a_budget_goes_to_some_rows() -> None:
    structure = fit(spectrum_table(), 26_000)
    assert structure.nbytes == 26_000 and len(structure.layout.tier_rows) == 2


def test_what_is_left_between_tiers_goes_to_rows_of_the_lower_one() -> None:
    weights = torch.ones(ROWS)
    weights[::10], weights[::3] = 50.0, 5.0
    plan = plan_blocks(statistics(spectrum_table(), weights), 20_000, 4, SIZES)
    # Half a code more than nothing: codewords of tiers differ in length by a bit or two.
    assert len(plan.rows) > 2 and 20_000 - 2 * max(plan.blocks) < bytes_of(plan) <= 20_000


def test_a_plan_counts_what_is_stored() -> None:
    table = spectrum_table()
    plan = plan_blocks(statistics(table), 24_000, 4, SIZES)
    assert fit(table, 24_000).nbytes == bytes_of(plan)
    assert sum(plan.rows) == ROWS and len(plan.blocks) == len(plan.rows) and max(plan.blocks) == len(plan.widths)


def test_blocks_are_narrow_where_axes_matter_most_and_the_last_axes_are_left_out() -> None:
    plan = plan_blocks(statistics(spectrum_table(decay=0.9)), 16_000, 1, SIZES)
    assert plan.widths[0] < plan.widths[-1]
    assert list(plan.widths) == sorted(plan.widths)
    assert sum(plan.widths) < WIDTH


def test_axes_that_matter_more_are_stored_more_finely() -> None:
    bits = plan_blocks(statistics(spectrum_table(decay=0.85)), 24_000, 1, SIZES).basis_bits
    assert bits[0] > bits[-1]


def test_equal_bytes_serve_better_than_slices_of_equal_width() -> None:
    table = spectrum_table(decay=0.9)
    slices = fit_structure(hce.SubspaceConfig(num_subspaces=6, codebook_size=64), FitSource(table))
    blocks = fit(table, slices.nbytes)
    assert gap_db(relative_error(table, slices.dense().detach()), error(table, blocks)) > 1.5


def test_more_bytes_give_less_error() -> None:
    table = spectrum_table()
    errors = [error(table, fit(table, size)) for size in (300, 4_000, 12_000, 24_000, 48_000)]
    assert errors == sorted(errors, reverse=True) and errors[0] > 0.95 and errors[-1] < 0.07


def test_rows_that_weigh_more_have_more_blocks() -> None:
    table = spectrum_table()
    counts = torch.zeros(ROWS)
    counts[::10] = 50.0
    options = {"source": {"counts": counts}, "frequency_power": 1.0, "axis_power": 1.0}
    one, many = fit(table, 16_000, tiers=1, **options), fit(table, 16_000, tiers=3, **options)
    assert error(table, many, counts + 1) < 0.7 * error(table, one, counts + 1)
    blocks = torch.tensor(many.layout.tier_blocks)[many.positions().of()[0]]
    assert blocks[::10].float().mean() > blocks.float().mean() + 1
    assert list(many.layout.tier_blocks) == sorted(many.layout.tier_blocks, reverse=True)


def test_a_tied_head_raises_the_powers() -> None:
    table = spectrum_table()
    counts = torch.zeros(ROWS)
    counts[::10] = 50.0
    plain, tied = (fit(table, 16_000, source={"counts": counts, "tied": tied}) for tied in (False, True))
    assert error(table, tied, counts + 1) < error(table, plain, counts + 1)


def test_a_metric_moves_the_error_where_it_costs_less() -> None:
    table = spectrum_table(decay=1.0)
    metric = torch.diag(torch.tensor([100.0] * 8 + [0.0] * 40))
    plain = fit(table, 12_000, source={"metric": metric}, metric="plain")
    aware = fit(table, 12_000, source={"metric": metric}, metric="sensitivity")
    first = [relative_error(table[:, :8], s.dense().detach()[:, :8]) for s in (plain, aware)]
    assert first[1] < 0.4 * first[0]
    with pytest.raises(CompactConfigError, match="metric"):
        fit(table, 12_000, metric="sensitivity")


def test_bytes_lose_next_to_nothing_on_codebooks() -> None:
    table = spectrum_table()
    # With room for either, so that only the rounding differs.
    errors = [
        error(table, fit(table, 60_000, tiers=1, codebooks=kind, basis="float16")) for kind in ("int8", "float16")
    ]
    assert errors[0] < 1.1 * errors[1]


def test_a_prediction_is_the_full_fit() -> None:
    table = spectrum_table()
    source = FitSource(table, counts=torch.arange(ROWS).float())
    config = hce.BlocksConfig(max_bytes=16_000, codebook_size=64)
    ids = torch.arange(5, ROWS, 7)
    predict = method_of(config).predict
    assert predict is not None
    found = predict(config, dataclasses.replace(source, max_bytes=16_000))
    full = fit_structure(config, source)
    assert found.bytes == full.nbytes
    torch.testing.assert_close(found.coded(ids).dense(), full.dense()[ids])


def test_scores_follow_rows_through_tiers() -> None:
    structure = fit(spectrum_table(), 16_000, source={"counts": torch.arange(ROWS).float()}, tiers=4)
    assert len(structure.layout.tier_rows) > 1 and len(structure.positions().of()[0].unique()) > 1
    hidden = torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(structure.project(hidden), hidden @ structure.dense().T, atol=1e-4, rtol=1e-4)
    shrunk = structure.resized(100)
    torch.testing.assert_close(shrunk.project(hidden), hidden @ shrunk.dense().T, atol=1e-4, rtol=1e-4)


def test_fewer_rows_than_entries() -> None:
    table = spectrum_table(40)
    structure = fit(table, 4_000, codebook_size=256)
    assert structure.dense().isfinite().all()


def test_budgets_down_to_the_mean_row() -> None:
    table = spectrum_table()
    structure = fit(table, 2 * WIDTH)
    assert structure.layout.rank == 0 and count_collisions(structure) == ROWS - 1
    torch.testing.assert_close(structure.dense()[17], table.mean(0), atol=1e-3, rtol=1e-3)
    with pytest.raises(CompactConfigError, match=r"`max_bytes` is 95, but the smallest plan takes 96 bytes"):
        fit(table, 95)


@pytest.mark.parametrize("rows", [520, 3000, 30_522])
def test_every_candidate_can_be_fitted(rows: int) -> None:
    size = next(size for size in range(100, 10**6, 100) if _candidates(rows, WIDTH, size))
    spread = statistics(spectrum_table(520, WIDTH))
    assert bytes_of(plan_blocks(spread, size, 4, SIZES)) <= size


def test_what_a_code_takes_away_is_what_reverse_water_filling_says() -> None:
    variances = torch.tensor([4.0, 2.0, 1.0, 0.5, 1e-9, 1e-9]).double()
    ends = (0, 1000)
    zeros = torch.zeros(2, 6, dtype=torch.float64)
    stacked = RowStatistics(
        ends, torch.tensor([0.0, 1.0]).double(), zeros, torch.stack([torch.zeros_like(variances), variances])
    )

    def six_wide(plan: BlockPlan) -> int:
        config = hce.BlocksConfig(codebook_size=SIZES.entries)
        return stored_bytes(config, _layout(config, plan, 6), 6)

    # One block is all that the budget has room for; it takes the four axes that a byte is worth spending on.
    plan = plan_within(stacked, 1000 + 64 * 6 + 200, 1, SIZES, six_wide)
    assert plan.widths == (4,)
    level = (4.0 * 2 * 1 * 0.5 * 2.0 ** (-2 * 7)) ** (1 / 4)
    gained = code_gains(variances.unsqueeze(0), 6, 8.0)[0]
    assert float(gained[0, 3]) == pytest.approx(7.5 - 4 * level)
    assert float(gained[0, 5]) == pytest.approx(float(gained[0, 3]), rel=1e-6)
    assert float(gained[0, 0]) == pytest.approx(4 * (1 - 2.0**-14))
    assert math.isclose(float(gained[5, 1]), 0.0), "there is no axis past the last"


def test_the_contract_tests_see_several_tiers() -> None:
    structure = build_structure(TINY_CASES["blocks"][0])
    assert isinstance(structure, BlocksEmbedding) and len(structure.layout.tier_rows) > 1


def test_damage_is_found() -> None:
    structure = fit(spectrum_table(), 16_000)
    structure.codes[3] = 64
    with pytest.raises(CheckpointError, match="`codes` holds 64"):
        structure.check_values()


def test_rows_that_are_alike_are_counted() -> None:
    table = spectrum_table()
    table[1] = table[0]
    structure = fit(table, 24_000, tiers=1)
    before = count_collisions(structure)
    assert before >= 1
    structure.tier_codes(0)[2] = structure.tier_codes(0)[0]
    assert count_collisions(structure) == before + 1


def test_an_axis_without_bits_is_refused_at_once() -> None:
    structure = fit(spectrum_table())
    assert structure.basis_bits is not None
    with torch.no_grad():
        structure.basis_bits[-1] = 0
    assert bool(structure.axes()[-1].eq(0).all())
    with pytest.raises(CheckpointError, match="`basis_bits` adds up to"):
        structure.check_values()
