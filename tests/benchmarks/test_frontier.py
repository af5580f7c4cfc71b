"""The parts of the frontier benchmark that would make its figures wrong if they broke."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from benchmarks.common.library import covariance, private_bytes
from benchmarks.frontier import fit, head_map, measuring, peers, settings, spectra
from benchmarks.frontier.plot import STYLES, pareto

_ROWS, _WIDTH = 600, 32


@pytest.fixture
def table():
    variances = np.arange(1.0, _WIDTH + 1) ** -1.0
    return np.concatenate(list(spectra.gaussian_rows(_ROWS, variances, 0)))


@pytest.fixture
def facts(table):
    variances = torch.linalg.eigvalsh(covariance(torch.from_numpy(table))[1]).numpy()
    return settings.Table(_ROWS, _WIDTH, private_bytes(2, _WIDTH), variances, variances)


@pytest.mark.parametrize(
    ("counted", "arrays"),
    [
        # 5 codes of 6 bits are 4 bytes; 32 dimensions become 35, of which 64 centroids are stored.
        (peers.pq_bytes(600, 32, 5, 6), [(600, 4, 1), (64, 35, 2)]),
        (peers.opq_bytes(600, 32, 4, 8, 12), [(600, 4, 1), (256, 12, 2), (12, 32, 2), (1, 32, 2)]),
        # 33 clusters need 6 bits for each of 600 tokens.
        (peers.vocabulary_bytes(600, 32, 33), [(450, 1, 1), (33, 32, 2), (600, 1, 2)]),
        (peers.scaled_bytes(600, 32, 4, 16), [(600, 16, 1), (600, 2, 2)]),
        # 300 blocks; two blocks of their scales, an offset, and tables of 256 and 16 levels.
        (peers.block_bytes(600 * 32), [(600, 16, 1), (300, 1, 1), (2 + 1 + 256 + 16, 1, 2)]),
        (private_bytes(2, 32), [(2, 32, 2), (2, 4, 1)]),
    ],
)
def test_bytes_are_those_of_the_arrays(counted, arrays):
    assert counted == sum(rows * columns * size for rows, columns, size in arrays)


@pytest.mark.parametrize("budget", [4_000, 12_000, 30_000])
def test_settings_fill_the_budget(budget):
    variances = np.arange(1.0, 65) ** -1.0
    pq = peers.pq_settings(1000, 64, budget)
    opq = peers.opq_settings(1000, 64, budget, variances, 3)
    vocabulary = peers.vocabulary_settings(1000, 64, budget)
    pq_sizes = [peers.pq_bytes(1000, 64, found["subspaces"], found["bits"]) for found in pq]
    opq_sizes = [peers.opq_bytes(1000, 64, found["subspaces"], found["bits"], found["reduced"]) for found in opq]
    assert all(size <= budget for size in pq_sizes + opq_sizes)
    assert all(found["reduced"] % found["subspaces"] == 0 for found in opq)
    assert pq and max(pq_sizes) > 0.6 * budget
    clusters = vocabulary[0]["clusters"]
    assert peers.vocabulary_bytes(1000, 64, clusters) <= budget < peers.vocabulary_bytes(1000, 64, clusters + 1)


def test_the_pareto_front_keeps_what_nothing_beats():
    points = [(4.0, 80.0), (8.0, 79.0), (8.0, 80.5), (20.0, 70.0), (25.0, 75.0), (100.0, 75.0), (500.0, 60.0)]
    assert pareto(points) == [2, 5, 6]
    # 8.2 is no smaller than 8, for this.
    assert pareto([(8.0, 80.0), (8.2, 79.0), (8.3, 79.0)]) == [0, 2]
    assert pareto([(8.0, 80.0), (8.2, 81.0)]) == [1]


def test_every_family_has_a_style_and_every_setting_a_name(facts):
    found = settings.all_settings(facts)
    assert {setting.family for setting in found} == set(STYLES)
    assert len({setting.name for setting in found}) == len(found)
    assert {setting.library for setting in found} == {fit.OURS, *settings.LIBRARIES}


def test_our_fits_keep_their_budget_and_the_exact_rows(tmp_path, table, facts):
    ids = np.array([0, 7])
    fit.Inputs(table, counts=np.arange(_ROWS) + 1.0, private_ids=ids).write(tmp_path)
    judge = measuring.Judge(table, table.size, torch.from_numpy(facts.variances), None)
    errors = {}
    for setting in settings.all_settings(facts):
        families = ("rotated", "subspace", "factorized (SVD)")
        # A table as small as this has no room for two factors at the lowest rate.
        if setting.group not in {f"{family}, 2 bits" for family in families} | {"rotated, 1 bit", "rotated, 0.3 bits"}:
            continue
        measured = fit.measure(setting, tmp_path)
        decoded = np.load(tmp_path / "decoded.npy")
        np.testing.assert_array_equal(decoded[ids], table[ids].astype(np.float16))
        judged = judge(decoded, measured["bytes"])
        assert judged["bits_per_weight"] <= settings.RATES[setting.group.split(", ")[1]]
        assert judged["gap_db"] > 0
        errors[setting.name] = judged["relative_mse"]
    assert errors["rotated, 2 bits"] < errors["rotated, 1 bit"] < errors["rotated, 0.3 bits"] < 1
    assert errors["rotated, 2 bits"] == min(errors.values())


def test_a_sample_is_coded_by_the_plan_of_the_whole_table(tmp_path, table, facts):
    coded = np.arange(5, 300, 3)
    setting = settings.unweighted(facts, "2 bits", 2.0)[0]
    fit.Inputs(table).write(tmp_path)
    whole = fit.measure(setting, tmp_path)
    rows = np.load(tmp_path / "decoded.npy")[coded]
    fit.Inputs(None, coded=coded).write(tmp_path)
    sample = fit.measure(setting, tmp_path)
    decoded = np.load(tmp_path / "decoded.npy")
    assert decoded.shape == rows.shape
    assert sample["bytes"] == whole["bytes"]
    error, expected = (np.square(found - table[coded]).sum() for found in (decoded, rows))
    assert error == pytest.approx(expected, rel=0.1)


def test_missing_libraries_are_left_out_with_a_reason(monkeypatch, capsys):
    for library in settings.LIBRARIES:
        monkeypatch.setitem(sys.modules, library, None)
    assert measuring.available() == {fit.OURS}
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == len(settings.LIBRARIES)
    assert all("is left out" in line and "ModuleNotFoundError" in line and "[peers]" in line for line in lines)


def test_results_are_found_again_unless_their_setting_changed(tmp_path, facts):
    setting, other = settings.all_settings(facts)[:2]
    results = measuring.Results(tmp_path / "found.json", None)
    results.add({"source": "table", **fit.dataclasses.asdict(setting), "bytes": 1, "best": True})
    again = measuring.Results(tmp_path / "found.json", None)
    assert again.find(setting, "table")["bytes"] == 1
    assert again.find(setting, "another table") is None
    assert again.find(other, "table") is None
    changed = fit.dataclasses.replace(setting, options={**setting.options, "bits": 3})
    assert again.find(changed, "table") is None
    assert not measuring.Results(tmp_path / "found.json", setting.name).found


def test_checks_compare_each_with_the_bound_at_its_own_bytes():
    results = [
        {"group": "rotated, 1 bit", "best": True, "gap_db": 0.4},
        {"group": "faiss PQ, 1 bit", "best": True, "gap_db": 1.7},
        {"group": "faiss OPQ, 1 bit", "best": True, "gap_db": 1.5},
        {"group": "faiss OPQ, 1 bit", "gap_db": 1.4},
    ]
    assert [check["met"] for check in measuring.checks(results)] == [True, True, False]


def test_maps_of_a_head_make_up_for_what_they_can():
    torch.manual_seed(0)
    rows, unit, pieces = torch.randn(200, 16), torch.eye(16), torch.zeros(2, 257, dtype=torch.int64)
    original = head_map._Side(rows, 0.5 * torch.randn(512, 16) + 0.5, 0.5 * torch.randn(512, 16) + 0.5)
    turned = unit + 0.4 * torch.randn(16, 2) @ torch.randn(2, 16)
    # With noise, as codes have it.
    table = (rows + 0.05 * torch.randn(200, 16)) @ torch.linalg.inv(turned)
    side = head_map._Side(table, original.learned, original.held_out)

    def divergence(name):
        return [
            head_map._measured(original, side, *each[2:], pieces)["kl"]
            for each in head_map._maps(name, original, side, 2, 60)
        ]

    none, free = divergence("no map")
    (same, coded), (start, end) = divergence("closed"), divergence("low rank")
    assert same == none and free < 0.05 * none
    assert free < coded < 0.5 * none
    assert end < start < none
    bias = head_map._bias(original, side, unit)
    torch.testing.assert_close(bias, (original.learned @ rows.T - side.learned @ table.T).mean(0), rtol=0, atol=1e-3)
    exact = head_map._Side(rows, original.learned, original.held_out)
    assert head_map._measured(original, exact, unit, None, pieces) == {
        "over_dense": 1.0,
        "kl": 0.0,
        "top1_agreement": 1.0,
        "tokens": 512,
    }
