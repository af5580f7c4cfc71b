"""compress(effort=…): fast reads no text, balanced is what it is by default, best never ends worse than the fit."""

from __future__ import annotations

import copy
import dataclasses
import json
import random
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

import hf_compact_embeddings as hce
from hf_compact_embeddings.cli.main import main
from hf_compact_embeddings.evidence import gathering
from hf_compact_embeddings.modeling.architectures import find_input_table
from hf_compact_embeddings.training import refinement
from hf_compact_embeddings.training.losses import choose_losses
from hf_compact_embeddings.training.recipes import Recipe, recipe_for

from .cases import Case, for_each_method
from .tiny_models import tiny_model
from .tools import assert_same_state, tiny_texts, tiny_tokenizer

SMALL = {"bits_per_weight": 3.0, "tiers": 1}


def best(model: PreTrainedModel, method: str | None = "rotated", **options: Any) -> PreTrainedModel:
    given = {"tokenizer": tiny_tokenizer(), "texts": tiny_texts(120), "minutes": 5, **options}
    return hce.compress(model, method, effort="best", **given)


def calibration_of(compact: PreTrainedModel) -> dict[str, Any]:
    return compact.config.compact_source["calibration"]


@pytest.fixture
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calibrate for one pass of a few steps."""
    use_recipe(monkeypatch, most_passes=1)


def use_recipe(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    monkeypatch.setattr(
        refinement, "recipe_for", lambda compact: dataclasses.replace(recipe_for(compact), **{"batch": 16} | changes)
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"effort": "slow"}, "`effort` is 'slow', but it must be 'fast', 'balanced', 'best'"),
        ({"effort": "fast", "minutes": 3}, "`minutes` is 3, but `effort` is 'fast', and only 'best'"),
        ({"minutes": 3}, "`minutes` is 3, but `effort` is 'balanced'"),
        ({"effort": "best"}, "`tokenizer` is missing: `effort` is 'best'"),
        ({"effort": "best", "tokenizer": 1, "minutes": 0}, "`minutes` is 0, but it must be a number above 0"),
        ({"effort": "best", "tokenizer": 1, "minutes": float("nan")}, "`minutes` is nan"),
        ({"effort": "best", "tokenizer": 1, "init": "random"}, "`init` is 'random': nothing is fitted"),
    ],
)
def test_what_makes_no_sense_is_told_before_the_model_is_loaded(options: dict[str, Any], message: str) -> None:
    with pytest.raises(hce.CompactConfigError, match=message):
        hce.compress("no/such/folder", "rotated", **options)


def test_fast_reads_no_text(monkeypatch: pytest.MonkeyPatch) -> None:
    def unexpected(*_: object) -> None:
        raise AssertionError("texts are made")

    monkeypatch.setattr(gathering, "made_texts", unexpected)
    monkeypatch.setattr(gathering, "find_sensitivity", unexpected)
    model, tokenizer = tiny_model(), tiny_tokenizer()
    for given in ({"bits_per_weight": 8.0}, {"method": "rotated", **SMALL}, {"method": "subspace", "num_subspaces": 4}):
        given = {"codebook_size": 16} | given if "num_subspaces" in given else given
        compact = hce.compress(model, tokenizer=tokenizer, effort="fast", **given)
        options = compact.compact_embedding.options
        assert getattr(options, "metric", "plain") == "plain"
        assert getattr(options, "max_window_bits", 8) == 8 and getattr(options, "iterations", 8) == 8
    # A configuration stands, but for what it leaves open.
    options = hce.compress(
        model, hce.RotatedConfig(**SMALL), tokenizer=tokenizer, effort="fast"
    ).compact_embedding.options
    assert options == hce.RotatedConfig(**SMALL, metric="plain")


def test_options_that_are_given_hold() -> None:
    model, tokenizer = tiny_model(), tiny_tokenizer()
    given = {"metric": "sensitivity", "max_window_bits": 10}
    for method, sizes in (("rotated", SMALL), (None, {"bits_per_weight": 8.0})):
        options = hce.compress(
            model, method, tokenizer=tokenizer, effort="fast", **given, **sizes
        ).compact_embedding.options
        assert (options.metric, options.max_window_bits) == ("sensitivity", 10)


def test_fast_judges_only_what_foresees_its_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(vocab_size=1200)
    judged = [plan.config.method for plan in hce.plan(model, ratio=10)]
    assert len(set(judged)) > 2
    fast = hce.compress(model, ratio=10, effort="fast").compact_embedding.options
    assert fast.method in ("rotated", "blocks")
    # Where there are no others, those that are left are judged as ever.
    assert hce.compress(model, ratio=3, bits=4, effort="fast").compact_embedding.options.method == "scalar"


@pytest.mark.parametrize("effort", ["fast", "balanced"])
def test_a_seed_repeats_a_fit(effort: str) -> None:
    options = {"tokenizer": tiny_tokenizer(), "bits_per_weight": 8.0, "seed": 3}
    first, second = (hce.compress(tiny_model(), effort=effort, **options) for _ in range(2))
    assert_same_state(first, second)
    if effort == "balanced":
        assert_same_state(first, hce.compress(tiny_model(), **options))


@for_each_method("project")
def test_best_calibrates_every_method(case: Case, few_steps: None) -> None:
    dense = tiny_model()
    before = {name: value.clone() for name, value in dense.state_dict().items()}
    compact = best(dense, case.method, **case.options)
    noted = calibration_of(compact)
    assert noted["held_out_loss"]["now"] <= noted["held_out_loss"]["fit"]
    assert noted["share"] in (0, 0.25, 0.5, 0.75, 1) and noted["texts"] == {
        "learned": 88,
        "held_out": 32,
        "made": False,
    }
    assert all(torch.equal(value, before[name]) for name, value in dense.state_dict().items())
    assert not compact.training and all(value.requires_grad for value in compact.parameters())


@pytest.mark.parametrize(
    ("architecture", "head"), [("bert", "BertModel"), ("llama", None), ("llama", "LlamaModel"), ("t5", None)]
)
def test_best_calibrates_every_kind_of_model(architecture: str, head: str | None, few_steps: None) -> None:
    tokenizer = tiny_tokenizer()
    if head == "LlamaModel":
        tokenizer.pad_token, tokenizer.eos_token = None, "[SEP]"
    dense = tiny_model(architecture, head)
    compact = best(dense, tokenizer=tokenizer, **SMALL)
    noted = calibration_of(compact)
    assert noted["share"] > 0 and noted["held_out_loss"]["now"] < noted["held_out_loss"]["fit"]
    causal = architecture == "llama" and head is None
    assert noted["losses"] == choose_losses(compact, True, None)
    assert noted["trains"] == ("tables+norms" if causal else "all")
    assert tokenizer.pad_token is None or head != "LlamaModel", "the tokenizer is as it was"


def test_best_makes_texts_where_none_are_given(few_steps: None, monkeypatch: pytest.MonkeyPatch) -> None:
    seeds = []
    made = gathering.made_texts

    def noting(*arguments: Any) -> list[str]:
        seeds.append(arguments[-1])
        return made(*arguments)

    monkeypatch.setattr(gathering, "made_texts", noting)
    monkeypatch.setattr(refinement, "_MOST_MADE", 1100)
    monkeypatch.setattr(refinement, "_MOST_HELD_OUT", 40)
    noted = calibration_of(best(tiny_model(), texts=None, **SMALL))
    assert noted["texts"] == {"learned": 1496, "held_out": 40, "made": True}
    assert sorted(set(seeds)) == [0, 1, 2], "the fit's own, and others"


def fit_of(dense: PreTrainedModel, **options: Any) -> PreTrainedModel:
    return hce.compress(dense, "rotated", tokenizer=tiny_tokenizer(), texts=tiny_texts(120), **SMALL, **options)


@pytest.mark.parametrize(("architecture", "rate"), [("bert", 1.0), ("bert", 1e30), ("llama", 1e30)])
def test_what_destroys_leaves_the_fit(architecture: str, rate: float, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """The one rate makes the model worse, the other ends in values that are not finite."""
    use_recipe(monkeypatch, most_passes=1, learning_rate=rate, table_learning_rate=rate)
    dense = tiny_model(architecture)
    compact = best(dense, verbose=True, **SMALL)
    noted = calibration_of(compact)
    assert noted["share"] == 0 and noted["held_out_loss"]["now"] == noted["held_out_loss"]["fit"]
    assert_same_state(compact, fit_of(dense))
    told = capsys.readouterr().err
    assert ("so that the fit stays" in told) if rate > 1e9 else ("0% of the way is best" in told)
    assert "all values are those of the fit" in str(hce.hub.card.make_card(compact, hce.inspect(compact)))


def test_what_is_best_is_what_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """The judge is asked of each share, and the one that it likes is the model."""
    use_recipe(monkeypatch, most_passes=1)
    asked: list[PreTrainedModel] = []

    class Judge:
        def __init__(self, *_: object) -> None: ...

        def __call__(self, model: PreTrainedModel) -> float:
            asked.append(model)
            return [5.0, 4.0, 3.0, 3.5, float("nan")][len(asked) - 1]

    monkeypatch.setattr(refinement, "Judge", Judge)
    compact = best(tiny_model(), **SMALL)
    assert calibration_of(compact)["share"] == 0.5 and len(asked) == 5
    assert_same_state(compact, asked[2])


def test_too_few_minutes_say_how_many_it_takes() -> None:
    with pytest.raises(
        hce.CompactConfigError, match=r"`minutes` is 1e-05, but it must be at least 0\.\d+ for a single"
    ):
        best(tiny_model(), minutes=1e-5, **SMALL)


def test_it_ends_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    use_recipe(monkeypatch, most_passes=100_000)
    began = time.perf_counter()
    noted = calibration_of(best(tiny_model(), minutes=0.1, **SMALL))
    assert noted["steps"] > 5 and time.perf_counter() - began < 6.5


def test_few_and_short_texts_make_short_windows(few_steps: None) -> None:
    """Held-out texts fill no window of the usual length, and are joined to what they fill."""
    short = [" ".join(text.split()[:4]) for text in tiny_texts(60)]
    noted = calibration_of(best(tiny_model("llama"), texts=short, **SMALL))
    assert noted["share"] > 0 and noted["texts"]["held_out"] == 30


def test_a_causal_model_is_judged_by_its_divergence_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The figure that decides is that of the evaluation: KL to the dense model at each next token."""
    use_recipe(monkeypatch, most_passes=1)
    judges: list[refinement.Judge] = []
    native = refinement.Judge

    class Noting(native):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            judges.append(self)

    monkeypatch.setattr(refinement, "Judge", Noting)
    dense = tiny_model("llama")
    compact = best(dense, **SMALL)
    (judge,) = judges
    total, count = 0.0, 0
    with torch.no_grad():
        for batch in judge.batches:
            own, goal = (
                model(batch["input_ids"]).logits[:, :-1].log_softmax(-1).flatten(0, 1) for model in (compact, dense)
            )
            total += float((goal.exp() * (goal - own)).sum())
            count += len(own)
    assert total > 0
    assert calibration_of(compact)["held_out_loss"]["now"] == pytest.approx(total / count, rel=2e-2)


def test_a_few_texts_are_too_few() -> None:
    with pytest.raises(hce.CompactConfigError, match="`texts` has 15 texts, but `effort` 'best' needs at least 16"):
        best(tiny_model(), texts=tiny_texts(15), **SMALL)


def test_a_model_that_reads_no_tokens_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    dense = tiny_model("bert", "BertModel")

    def refuse(*_: object, **__: object) -> None:
        raise TypeError("pixels are missing")

    monkeypatch.setattr(dense, "forward", refuse)
    with pytest.raises(
        hce.CompactConfigError, match="`effort` is 'best', but a BertModel cannot be run on tokens alone"
    ):
        best(dense, metric="plain", **SMALL)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_types_modes_and_random_numbers_stay(dtype: torch.dtype, few_steps: None) -> None:
    dense = tiny_model("bert", "BertModel").to(dtype).train()
    torch.manual_seed(11)
    random.seed(11)
    states = torch.get_rng_state(), random.getstate()
    compact = best(dense, **SMALL)
    assert torch.equal(torch.get_rng_state(), states[0]) and random.getstate() == states[1]
    assert compact.dtype == dtype and compact.training and dense.training
    assert calibration_of(compact)["share"] > 0


def test_texts_are_drawn_from_all_that_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refinement, "_MOST_TEXTS", 40)
    recipe = Recipe({"states": 1.0}, 8, 4, 1e-4, 0.01)
    evidence = hce.compression.gather(
        tiny_model(),
        find_input_table(tiny_model()),
        tokenizer=tiny_tokenizer(),
        texts=[str(number) for number in range(1000)],
    )
    drawn = [int(text) for text in refinement._texts(evidence, recipe, None)]
    assert len(set(drawn)) == 40 and min(drawn) < 250 and max(drawn) > 750
    learned, held_out = refinement._split([str(number) for number in range(1000)], 0)
    assert len(held_out) == 100 and set(learned).isdisjoint(held_out) and len(learned) == 900


def test_the_verb(tmp_path: Path, capsys: pytest.CaptureFixture, few_steps: None) -> None:
    dense = tiny_model()
    dense.save_pretrained(tmp_path / "dense")
    tiny_tokenizer().save_pretrained(tmp_path / "dense")
    (tmp_path / "texts.txt").write_text("\n".join(tiny_texts(60)), encoding="utf-8")
    words = [
        "compress",
        str(tmp_path / "dense"),
        "--method",
        "rotated",
        "--set",
        "bits_per_weight=3",
        "--set",
        "tiers=1",
    ]
    words += ["--texts", str(tmp_path / "texts.txt"), "--json"]
    assert main([*words, "--effort", "best", "--minutes", "5", "--verbose", "--output", str(tmp_path / "best")]) == 0
    out, err = capsys.readouterr()
    assert (
        json.loads(out)["calibration"]["held_out_loss"]["now"] <= json.loads(out)["calibration"]["held_out_loss"]["fit"]
    )
    lines = err.splitlines()
    told = [index for index, line in enumerate(lines) if line.startswith(("Calibrating: ", "Held-out loss ", "In all"))]
    assert len(told) == 3 and lines[told[0]].startswith("Calibrating: ") and "of 5 minutes" in lines[told[0]]
    assert {"Loading the model", "Calibrating", "Inspecting and saving"} <= {line[:24].strip() for line in lines}
    assert "The loss on held-out texts was" in (tmp_path / "best" / "README.md").read_text(encoding="utf-8")
    assert main(["inspect", str(tmp_path / "best")]) == 0
    assert "calibrated" in capsys.readouterr().out
    for given, message in (
        (["--effort", "much"], "'fast', 'balanced', 'best'"),
        (["--minutes", "2"], "only 'best'"),
        (["--effort", "best", "--minutes", "0.00001"], "at least"),
    ):
        assert main([*words, *given, "--output", str(tmp_path / "none")]) == 2
        assert message in capsys.readouterr().err
    assert main([*words, "--effort", "fast", "--output", str(tmp_path / "fast")]) == 0
    assert capsys.readouterr().err == ""
    assert json.loads((tmp_path / "fast" / "config.json").read_text())["compact_source"]["options"]["metric"] == "plain"


def test_best_calibrates_both_tables(few_steps: None) -> None:
    dense = tiny_model("llama-untied")
    compact = best(dense, "rotated", tables="all", **SMALL)
    assert list(compact.compact_tables) == ["model.embed_tokens", "lm_head.table"]
    noted = calibration_of(compact)
    assert noted["held_out_loss"]["now"] <= noted["held_out_loss"]["fit"]
    rounded = copy.deepcopy(compact)
    for table in rounded.compact_tables.values():
        table.round_to_storage()
    assert_same_state(rounded, compact)
