"""plan(): what it promises about bytes, errors and order is what full fits give."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import BertConfig, BertForMaskedLM, BertModel, PreTrainedModel

import hf_compact_embeddings as hce
from hf_compact_embeddings import judging, planning
from hf_compact_embeddings.cli.main import main
from hf_compact_embeddings.fitting import FitSource, fit_blocks, fit_rotated, fit_structure, method_of
from hf_compact_embeddings.fitting import weights as weights_of_rows
from hf_compact_embeddings.fitting.methods import Prediction

from .tiny_models import tiny_model

ROWS, WIDTH = 2000, 32
TABLE_BYTES = 4 * ROWS * WIDTH


def model_with(table: Tensor, head: bool = False) -> PreTrainedModel:
    """Return a model of one layer around a table."""
    config = BertConfig(
        vocab_size=len(table),
        hidden_size=table.shape[1],
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=16,
        pad_token_id=None,
    )
    model = (BertForMaskedLM if head else BertModel)(config)
    with torch.no_grad():
        model.get_input_embeddings().weight.copy_(table)
    return model


@pytest.fixture(scope="module")
def table() -> Tensor:
    """Rows with a falling spectrum, in axes of their own, of lengths of their own."""
    generator = torch.Generator().manual_seed(0)
    axes = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=generator)).Q
    scales = torch.arange(1, WIDTH + 1).float() ** -0.4
    lengths = 0.5 + torch.rand(ROWS, 1, generator=generator)
    return lengths * (torch.randn(ROWS, WIDTH, generator=generator) * scales) @ axes + 0.1


@pytest.fixture(scope="module")
def counts() -> Tensor:
    return (1e5 / torch.arange(1.0, ROWS + 1)).floor()


@torch.no_grad()
def full_fit(model: PreTrainedModel, found: planning.Plan, counts: Tensor | None) -> tuple[int, float]:
    """Return the bytes and the weighted relative MSE of a candidate's fit to the whole table."""
    structure = hce.compress(model, found.config, token_counts=counts).compact_embedding
    rows = model.get_input_embeddings().weight.detach()
    weights = torch.ones(len(rows)) if counts is None else counts + 1
    mean = (weights[:, None] * rows).sum(0) / weights.sum()
    error = (weights * (structure.dense() - rows).square().sum(1)).sum()
    return structure.nbytes, float(error / (weights * (rows - mean).square().sum(1)).sum())


@pytest.mark.parametrize("weighted", [False, True])
def test_bytes_errors_and_order_are_those_of_full_fits(
    table: Tensor, counts: Tensor, weighted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judging, "_FITTED_ROWS", 1000)
    model, given = model_with(table), counts if weighted else None
    plans = hce.plan(model, ratio=16, token_counts=given)
    assert len(plans) >= 3
    assert [found.predicted_error for found in plans] == sorted(found.predicted_error for found in plans)
    fits = [full_fit(model, found, given) for found in plans]
    for found, (size, error) in zip(plans, fits, strict=True):
        assert found.bytes == size <= TABLE_BYTES / 16
        assert found.ratio == pytest.approx(TABLE_BYTES / size)
        if found.rough:
            assert error > 1.25 * fits[0][1], "only the hopeless are dropped early"
        else:
            assert found.predicted_error == pytest.approx(error, rel=0.05), found.config
    assert not plans[0].rough and any(found.rough for found in plans)
    errors = [error for found, (_, error) in zip(plans, fits, strict=True) if not found.rough]
    for better, worse in zip(errors, errors[1:], strict=False):
        assert better < 1.05 * worse, "the order is that of the full fits, but for near ties"


def test_half_of_a_sample_is_a_sample_and_the_heaviest_rows_are_in_it() -> None:
    weights = torch.rand(5000, generator=torch.Generator().manual_seed(0)) ** 8
    ids, multiplicity = judging._draw(weights, 5000, seed=1, most=8192)
    assert len(ids) == 5000 and bool((multiplicity == 1).all())
    weights = weights.repeat(4)
    ids, multiplicity = judging._draw(weights, 20_000, seed=1, most=8192)
    assert len(ids.unique()) == len(ids) == 8192
    assert weights.topk(1000).values.min() <= weights[ids].topk(1000).values.min(), "nothing heavy is left out"
    for part in (slice(None), slice(len(ids) // 2)):
        share = float((weights[ids[part]] * multiplicity[part]).sum() / weights.sum())
        assert share == pytest.approx(1.0 if part == slice(None) else 0.5, rel=0.05)
    assert float(multiplicity.sum()) == pytest.approx(20_000)


def test_one_row_that_weighs_nearly_everything_does_not_break_the_prediction(
    table: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judging, "_FITTED_ROWS", 1000)
    model = model_with(table)
    for heavy in (0, 1, 2, 3):  # in either half of the sample
        counts = torch.ones(ROWS).index_fill(0, torch.tensor([heavy]), 1e7)
        judge = judging.Judge(FitSource(model.get_input_embeddings().weight.detach(), counts=counts), TABLE_BYTES)
        config = hce.SubspaceConfig(num_subspaces=4, codebook_size=16)
        (judged,) = judge.judged([(method_of(config), config)])
        predicted = judged.error
        found = full_fit(model, planning.Plan(config, 0, 1.0, 0.0, 0.0, 0.0, None), counts)[1]
        assert 0 <= predicted < 1 and predicted == pytest.approx(found, abs=0.05)


@pytest.mark.parametrize(
    ("half", "whole", "rows", "share"),
    [(2, 4, 8, 0.5), (2, 4, 4, 0.0), (2, 2, 8, 0.0), (4, 2, 8, 0.0), (3.9, 4, 8, 1.0)],
)
def test_errors_grow_by_no_more_than_they_did(half: float, whole: float, rows: float, share: float) -> None:
    assert judging._share_to_come(1 / half, 1 / whole, 1 / rows) == pytest.approx(share)


def test_the_bound_is_below_every_candidate_without_weights(table: Tensor) -> None:
    for found in hce.plan(model_with(table), bits_per_weight=1.0):
        assert 0 < found.bound < found.predicted_error
        assert found.gap_db > 0


def test_a_budget_may_be_a_ratio_bytes_or_bits(table: Tensor) -> None:
    for given in (
        {"ratio": 64},
        {"max_bytes": 4000},
        {"max_bytes": "4 KB"},
        {"max_bytes": "0.004MB"},
        {"bits_per_weight": 0.5},
    ):
        assert planning._budget(table, given) == 4000


def test_a_head_costs_where_it_is_tied(table: Tensor) -> None:
    plans = hce.plan(model_with(table, head=True), ratio=16)
    cost = {found.config.method: found.head_cost for found in plans}
    assert cost["subspace"] is not None and cost["rotated"] is not None
    assert cost["subspace"] < cost["rotated"], "product codes are looked up, trellis codes decoded"
    assert cost["rotated"] > 2, "measured: on real tables it is far above 2"
    for found in hce.plan(model_with(table, head=True), ratio=16, tied=False):
        assert found.head_cost is None


def test_a_budget_is_a_method(table: Tensor, counts: Tensor) -> None:
    model = model_with(table)
    best = hce.plan(model, ratio=16, token_counts=counts)[0]
    compact = hce.compress(model, ratio=16, token_counts=counts)
    assert compact.compact_embedding.options == best.config
    assert compact.compact_embedding.nbytes == best.bytes


def test_rows_that_lie_in_clusters_get_clusters() -> None:
    generator = torch.Generator().manual_seed(0)
    points, group = torch.randn(24, WIDTH, generator=generator), torch.randint(24, (ROWS,), generator=generator)
    table = points[group] + 0.3 * torch.randn(ROWS, WIDTH, generator=generator)
    model = model_with(table)
    best = hce.plan(model, ratio=64)[0]
    assert best.config.method == "rotated" and best.config.clusters == 32
    size, error = full_fit(model, best, None)
    assert size == best.bytes <= TABLE_BYTES / 64
    assert error == pytest.approx(best.predicted_error, rel=0.1) and error < 0.2 < best.bound


def test_room_is_left_for_rows_that_are_kept(table: Tensor) -> None:
    model = model_with(table)
    model.config.pad_token_id = model.get_input_embeddings().padding_idx = 0
    for found in hce.plan(model, ratio=16):
        assert found.config.private_rows == 1
        assert full_fit(model, found, None)[0] == found.bytes <= TABLE_BYTES / 16


def test_rows_that_are_kept_have_no_error(table: Tensor) -> None:
    model = model_with(table)
    # Three rows that weigh as much as all the others.
    counts = torch.ones(ROWS).index_fill(0, torch.tensor([3, 5, 7]), ROWS / 3)
    for found in hce.plan(model, ratio=16, token_counts=counts, private_rows=3):
        assert found.predicted_error == pytest.approx(full_fit(model, found, counts)[1], rel=0.2)


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ({}, "Exactly one of 'ratio', 'max_bytes', 'bits_per_weight' must be given"),
        ({"ratio": 10, "bits_per_weight": 1.0}, "Exactly one of"),
        ({"ratio": 1.0}, "`ratio` is 1.0, but the dense table takes 256,000 bytes already"),
        ({"ratio": -5}, "`ratio` is -5"),
        ({"max_bytes": "many"}, "`max_bytes` is 'many'"),
        ({"max_bytes": TABLE_BYTES}, "the dense table takes 256,000 bytes already"),
        ({"bits_per_weight": 32}, "`bits_per_weight` is 32, but the dense table takes"),
        ({"bits_per_weight": 0}, "`bits_per_weight` is 0, but it must be a number of at least"),
    ],
)
def test_a_budget_that_makes_no_sense_is_refused(table: Tensor, budget: dict, message: str) -> None:
    with pytest.raises(hce.CompactConfigError, match=message):
        hce.plan(model_with(table), **budget)


def test_too_small_a_budget_names_one_that_is_enough(table: Tensor) -> None:
    model = model_with(table)
    with pytest.raises(hce.CompactConfigError, match=r"The budget is 100 bytes, but the smallest") as caught:
        hce.plan(model, max_bytes=100)
    smallest = int(str(caught.value).rsplit("takes ", 1)[1].split(" ")[0].replace(",", ""))
    assert 100 < smallest < 10_000
    assert hce.plan(model, max_bytes=smallest)


def test_a_sample_smaller_than_the_codebooks_still_plans() -> None:
    plans = hce.plan(tiny_model("bert"), ratio=4)
    assert all(found.bytes <= tiny_model("bert").get_input_embeddings().weight.nbytes / 4 for found in plans)


def test_the_verb(table: Tensor, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    model_with(table[:300], head=True).save_pretrained(tmp_path)
    assert main(["plan", str(tmp_path), "--max-size", "3KB", "--json"]) == 0
    plans = json.loads(capsys.readouterr().out)["plans"]
    assert main(["plan", str(tmp_path), "--max-size", "3000"]) == 0
    printed = capsys.readouterr().out
    for found in plans:
        assert found["config"]["method"] in printed and f"{found['bytes']:,}" in printed
    assert main(["plan", str(tmp_path), "--max-size", "100"]) == 2
    assert "hf-compact plan: The budget is 100 bytes" in capsys.readouterr().err


def test_rows_to_keep_can_be_asked_for(table: Tensor) -> None:
    counts = torch.arange(len(table), 0, -1)
    compact = hce.compress(model_with(table), ratio=8, token_counts=counts, private_rows=7)
    structure = compact.compact_embedding
    assert structure.private_id_list().tolist() == list(range(7))
    assert structure.nbytes <= TABLE_BYTES / 8


def test_options_hold_for_all_candidates(table: Tensor) -> None:
    every = hce.plan(model_with(table), ratio=8)
    plans = hce.plan(model_with(table), ratio=8, tiers=2, storage_dtype="bfloat16")
    assert {found.config.method for found in plans} == {"rotated", "blocks"}, "the others have no tiers"
    assert all((found.config.tiers, found.config.storage_dtype) == (2, "bfloat16") for found in plans)
    assert len({found.config for found in plans}) == len(plans) < len(every)
    compact = hce.compress(model_with(table), ratio=8, tiers=2)
    assert compact.compact_embedding.options.tiers == 2 and compact.compact_embedding.nbytes <= TABLE_BYTES / 8
    with pytest.raises(hce.CompactConfigError, match="No candidate has the options 'tiers', 'num_subspaces'"):
        hce.compress(model_with(table), ratio=8, tiers=2, num_subspaces=4)
    with pytest.raises(hce.CompactConfigError, match=r"No candidate keeps the budget of [\d,]+ bytes with the options"):
        hce.plan(model_with(table), ratio=40, num_subspaces=WIDTH)


def test_rows_that_are_kept_may_take_the_whole_budget(table: Tensor) -> None:
    with pytest.raises(hce.CompactConfigError, match=r"The budget is 640 bytes, but the smallest candidate"):
        hce.plan(model_with(table), ratio=400, private_rows=20)


@pytest.mark.parametrize("width", [20, 99, 100])
def test_the_ratio_is_a_floor_at_any_width(width: int) -> None:
    table = torch.randn(600, width, generator=torch.Generator().manual_seed(0)) * torch.linspace(2, 0.1, width)
    for options in ({"max_bytes": 4_600}, {"max_bytes": 7_000, "storage_dtype": "float32"}):
        config = hce.RotatedConfig(**options)
        structure = fit_structure(config, FitSource(table))
        assert 0.75 * options["max_bytes"] < structure.nbytes <= options["max_bytes"]
        if config.storage_dtype == "float16":
            predict = method_of(config).predict
            assert predict is not None
            source = FitSource(table, max_bytes=options["max_bytes"])
            assert predict(config, source).bytes == structure.nbytes


@pytest.mark.parametrize("likeliest", [0.01, 1e-9])
def test_a_candidate_beyond_the_budget_is_no_measure_for_others(table: Tensor, likeliest: float) -> None:
    """Options that were asked for may make one too large; however good that would be, the others are tried."""
    source = FitSource(table)
    config = hce.RotatedConfig(max_bytes=TABLE_BYTES // 16)
    true = method_of(config)

    def too_large(options: hce.StructureConfig, source: FitSource) -> Prediction:
        found = true.predict(options, source)
        better = dataclasses.replace(found, bytes=TABLE_BYTES, expected_error=likeliest)
        return better if options == config else found

    method = dataclasses.replace(true, predict=too_large)
    others = [dataclasses.replace(config, tiers=tiers) for tiers in (2, 3)]
    judge = judging.Judge(source, TABLE_BYTES // 16)
    judged = list(judge.judged([(method, candidate) for candidate in (config, *others)]))
    assert {one.config for one in judged} == set(others) and not any(one.rough for one in judged)


def test_candidates_and_the_fit_share_what_they_find_alike(table: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[str] = []
    for module, name in (
        (weights_of_rows, "principal_axes"),
        (fit_rotated, "_find_frame"),
        (fit_blocks, "_find_frame"),
    ):
        find = getattr(module, name)

        def counted(*given: object, find=find, name=f"{module.__name__}.{name}") -> object:
            found.append(name)
            return find(*given)

        monkeypatch.setattr(module, name, counted)
    compact = hce.compress(model_with(table), ratio=16)
    assert compact.compact_embedding.options.method == "rotated"
    frames = [name for name in found if name.endswith("_find_frame")]
    assert len(found) - len(frames) == 1, "axes are found once"
    planned = [plan for plan in hce.plan(model_with(table), ratio=16) if plan.config.method in ("rotated", "blocks")]
    assert len(frames) == len(planned), "and each frame once, that of the fit too"


def test_the_verb_plans_for_both_tables(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    tiny_model("llama-untied").save_pretrained(tmp_path)
    assert main(["plan", str(tmp_path), "--tables", "all", "--ratio", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("head: ") for line in lines) and any(line.startswith("rotated") for line in lines)
    assert main(["plan", str(tmp_path), "--tables", "both", "--ratio", "3"]) == 2
    assert "`tables` is 'both'" in capsys.readouterr().err
