"""One door: whoever fits or plans is given the same evidence, and what costs a pass over texts is asked for first."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import hf_compact_embeddings as hce
from hf_compact_embeddings import compression, planning
from hf_compact_embeddings.cli.main import main
from hf_compact_embeddings.evidence import NEEDS, Evidence, gather, gathering
from hf_compact_embeddings.evidence.frequencies import count_tokens, counts_from_tokenizer
from hf_compact_embeddings.modeling.architectures import find_input_table

from ..tiny_models import VOCABULARY, tiny_model
from ..tools import tiny_texts, tiny_tokenizer

TEXTS = tiny_texts(40)


def evidence_of(architecture: str = "bert", **options: Any) -> Evidence:
    model = tiny_model(architecture)
    return gather(model, find_input_table(model), **options)


def write_rows(folder: Path) -> Path:
    """Write the texts as JSON lines, where every row has much beside its text."""
    path = folder / "a.jsonl"
    path.write_text("".join(json.dumps({"id": n, "kind": "w119", "text": text}) + "\n" for n, text in enumerate(TEXTS)))
    return path


def test_a_source_has_what_is_needed_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    evidence = evidence_of("llama-untied", tokenizer=tiny_tokenizer(), texts=TEXTS, seed=3, device="cpu")
    source = evidence.fit_source(NEEDS)
    assert torch.equal(source.counts, count_tokens(TEXTS, tiny_tokenizer(), VOCABULARY))
    assert source.features.shape == (VOCABULARY, 24) and source.metric.shape == (24, 24)
    assert source.token_strings[:6] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "w5"]
    assert source.private_ids.tolist() == [0, 1, 2, 3, 4]
    assert not source.tied and source.seed == 3 and source.device == torch.device("cpu")

    def unexpected(*_: object) -> None:
        raise AssertionError("nobody asked for it")

    for name in ("count_tokens", "contextual_states", "find_sensitivity"):
        monkeypatch.setattr(gathering, name, unexpected)
    again = evidence.fit_source(NEEDS)
    assert again.counts is source.counts and again.metric is source.metric, "texts are read once for each need"
    fresh = evidence_of(tokenizer=tiny_tokenizer(), texts=TEXTS)
    plain = fresh.fit_source(())
    assert (plain.counts, plain.features, plain.metric, plain.token_strings) == (None, None, None, None)
    scratch = fresh.fit_source(NEEDS, private_rows=9, from_scratch=True)
    assert scratch.private_ids.numel() == 0 and scratch.counts is None and scratch.metric is None


def test_rows_to_keep() -> None:
    counts = torch.arange(VOCABULARY)
    assert evidence_of(token_counts=counts).exact_rows(3).tolist() == [0, 118, 119]
    assert evidence_of().exact_rows(1).tolist() == [0]
    with pytest.raises(hce.CompactConfigError, match="`private_rows` is 2: to choose the most frequent tokens"):
        evidence_of().exact_rows(2)
    with pytest.raises(hce.CompactConfigError, match="`private_rows` is 121, but the table has 120 rows"):
        evidence_of(token_counts=counts).exact_rows(121)


def test_needs_that_cannot_be_met() -> None:
    message = "`features` is 'contextual', but contextual states need a `tokenizer`"
    with pytest.raises(hce.CompactConfigError, match=message):
        evidence_of().fit_source({"contextual_states"})
    for options in ({}, {"tokenizer": tiny_tokenizer()}):
        with pytest.raises(hce.CompactConfigError, match="`texts` is missing"):
            evidence_of(**options).fit_source({"texts"})
    source = evidence_of().fit_source({"counts", "sensitivity", "token_strings"})
    assert (source.counts, source.metric, source.token_strings) == (None, None, None)
    with pytest.raises(hce.CompactConfigError, match="`metric` is 'sensitivity'.*it needs a `tokenizer`"):
        hce.compress(tiny_model("bert"), "rotated", metric="sensitivity")


def test_a_tokenizer_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without data there are counts, and texts to read sensitivities and contextual states from."""
    for architecture in ("bert", "llama", "t5"):
        evidence = evidence_of(architecture, tokenizer=tiny_tokenizer(), seed=1)
        source = evidence.fit_source({"counts", "sensitivity", "contextual_states"})
        assert torch.equal(evidence.counts, counts_from_tokenizer(tiny_tokenizer(), VOCABULARY)), "no language has them"
        assert source.metric is not None and source.features is not None
        assert evidence.in_words({"counts", "sensitivity", "contextual_states"}) == (
            "token frequencies as far as the tokenizer tells, sensitivity to errors, read from texts made for it, "
            "contextual states, read from texts made for it, the special tokens"
        )
        again = evidence_of(architecture, tokenizer=tiny_tokenizer(), seed=1).fit_source({"sensitivity"})
        assert torch.equal(again.metric, source.metric)
        other = evidence_of(architecture, tokenizer=tiny_tokenizer(), seed=2).fit_source({"sensitivity"})
        assert not torch.equal(other.metric, source.metric), "the seed reaches the texts"
    assert evidence_of(tokenizer=tiny_tokenizer(), token_counts="uniform").fit_source().counts is None


def test_rows_of_a_tied_table_weigh_by_both_of_its_uses() -> None:
    given = {"tokenizer": tiny_tokenizer(), "texts": TEXTS}
    untied = evidence_of("llama-untied", **given)
    assert untied.sensitivity.doubts is None
    assert torch.equal(untied.fit_source({"counts", "sensitivity"}).counts, untied.counts)
    tied = evidence_of("llama", **given)
    counts, doubts = tied.counts, tied.sensitivity.doubts
    assert torch.equal(tied.fit_source({"counts"}).counts, counts), "nobody has asked what the head does"
    expected = counts / counts.sum() + doubts / doubts.sum()
    uses = tied.fit_source({"counts", "sensitivity"}).counts
    torch.testing.assert_close(uses / uses.sum(), expected / 2)
    assert float(uses.sum()) == pytest.approx(float(counts.sum())), "as many as were counted"


def test_what_a_plan_has_read_is_not_what_the_fit_was_told() -> None:
    given = {"tokenizer": tiny_tokenizer(), "texts": TEXTS}
    planned = hce.compress(tiny_model("bert"), bits_per_weight=8.0, num_subspaces=4, **given)
    assert planned.compact_embedding.options.method == "subspace"
    told = "tokens counted in texts, the special tokens"
    assert planned.config.compact_source["evidence"] == hce.inspect(planned).evidence == told
    scalar = hce.compress(tiny_model("bert"), "scalar", metric="plain", **given)
    assert scalar.config.compact_source["evidence"] == "the special tokens"


def test_where_counts_come_from(monkeypatch: pytest.MonkeyPatch) -> None:
    given = torch.arange(VOCABULARY)
    tokenizer = tiny_tokenizer()
    assert evidence_of(tokenizer=tokenizer, texts=TEXTS, token_counts=given).counts_from == "given"
    assert evidence_of(tokenizer=tokenizer, texts=TEXTS).counts_from == "texts"
    assert evidence_of(tokenizer=tokenizer, texts=TEXTS, languages="en").counts_from == "words"
    assert evidence_of(tokenizer=tokenizer).counts_from == "words"
    monkeypatch.setattr(gathering, "is_available", lambda: False)
    assert evidence_of(tokenizer=tokenizer).counts_from == "tokenizer"
    for wrong in ({"languages": ["en"]}, {"languages": ["en"], "token_counts": given, "tokenizer": tokenizer}):
        with pytest.raises(hce.CompactConfigError, match="`languages` needs a `tokenizer`, and no other"):
            evidence_of(**wrong)


def test_a_model_that_cannot_be_read_is_compressed_all_the_same(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise TypeError("forward() got an unexpected keyword argument")

    monkeypatch.setattr(gathering, "find_sensitivity", refuse)
    compact = hce.compress(tiny_model("bert"), "rotated", tokenizer=tiny_tokenizer(), bits_per_weight=6.0)
    assert "How sensitive BertForMaskedLM is to errors could not be found" in caplog.text
    assert "sensitivity" not in compact.config.compact_source["evidence"]


def test_needs_that_nobody_knows() -> None:
    with pytest.raises(ValueError, match="needs .'telepathy'."):
        evidence_of().fit_source({"telepathy"})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"texts": TEXTS}, "`tokenizer` is missing"),
        ({"token_counts": "tokenizer"}, "`token_counts` is 'tokenizer'.* with a `tokenizer`"),
        ({"token_counts": "many", "tokenizer": tiny_tokenizer()}, "`token_counts` is 'many'"),
        ({"token_counts": {"w5": 3}}, "`token_counts` cannot be read as numbers"),
        ({"token_counts": torch.ones(119)}, r"`token_counts` has shape \(119,\).*120 rows"),
    ],
)
def test_evidence_that_makes_no_sense_is_refused_by_all(options: dict, message: str) -> None:
    for call in (
        lambda: evidence_of(**options),
        lambda: hce.plan(tiny_model("bert"), ratio=4, **options),
        lambda: hce.compress(tiny_model("bert"), "scalar", **options),
    ):
        with pytest.raises(hce.CompactConfigError, match=message):
            call()


def test_the_seed_reaches_the_sensitivity() -> None:
    given = {"tokenizer": tiny_tokenizer(), "texts": TEXTS}
    metrics = [evidence_of("llama-untied", seed=seed, **given).sensitivity for seed in (1, 1, 2)]
    first, again, other = (found.metric for found in metrics)
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_compress_passes_its_seed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    fit = compression.fit_structure
    monkeypatch.setattr(compression, "fit_structure", lambda config, source: seen.append(source) or fit(config, source))
    options = {"bits_per_weight": 4.0, "metric": "sensitivity", "tokenizer": tiny_tokenizer(), "texts": TEXTS}
    for seed in (1, 2):
        hce.compress(tiny_model("llama-untied"), "rotated", seed=seed, **options)
    assert not torch.equal(seen[0].metric, seen[1].metric)


def test_rows_of_json_are_texts_and_no_syntax(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, tokenizer = write_rows(tmp_path), tiny_tokenizer()
    seen = []
    fit = compression.fit_structure
    monkeypatch.setattr(compression, "fit_structure", lambda config, source: seen.append(source) or fit(config, source))
    for texts in (TEXTS, path, str(path), f"{path}:text", [path]):
        hce.compress(
            tiny_model("bert"), "subspace", num_subspaces=4, codebook_size=16, tokenizer=tokenizer, texts=texts
        )
    expected = count_tokens(TEXTS, tokenizer, VOCABULARY)
    assert all(torch.equal(source.counts, expected) for source in seen)


def test_missing_texts_are_told_before_the_model_is_loaded() -> None:
    for call in (
        lambda: hce.compress("no/model", "scalar", texts="missing.txt", tokenizer=tiny_tokenizer()),
        lambda: hce.plan("no/model", ratio=4, texts="missing.txt", tokenizer=tiny_tokenizer()),
    ):
        with pytest.raises(hce.CompactConfigError, match="`texts` 'missing.txt' is no file"):
            call()


def without_times(plans: list[hce.Plan]) -> list[hce.Plan]:
    """What a head costs is measured anew each time."""
    return [dataclasses.replace(plan, head_cost=None) for plan in plans]


def test_a_plan_takes_the_same_evidence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = tiny_model("bert"), tiny_tokenizer()
    # Sensitivities are read from texts, of which there are none beside counts.
    options = {"bits_per_weight": 8.0, "tokenizer": tokenizer, "metric": "plain"}
    for given, counts in (
        ({"token_counts": "tokenizer"}, counts_from_tokenizer(tokenizer, VOCABULARY)),
        ({"texts": TEXTS}, count_tokens(TEXTS, tokenizer, VOCABULARY)),
        ({"texts": write_rows(tmp_path)}, count_tokens(TEXTS, tokenizer, VOCABULARY)),
    ):
        found = without_times(hce.plan(model, **options, **given))
        assert found == without_times(hce.plan(model, **options, token_counts=counts))
        assert found != without_times(hce.plan(model, **options, token_counts="uniform"))
    passes = []
    monkeypatch.setattr(gathering, "count_tokens", lambda *given: passes.append(1) or count_tokens(*given))
    compact = hce.compress(model, **options, texts=TEXTS)
    assert len(passes) == 1, "what the plan counted, the fit takes"
    best = planning.plan(model, **options, texts=TEXTS)[0]
    assert compact.compact_embedding.nbytes == best.bytes


def test_the_verbs_read_every_kind_of_text(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    model = tmp_path / "model"
    tiny_model("bert").save_pretrained(model)
    tiny_tokenizer().save_pretrained(model)
    (tmp_path / "a.txt").write_text("\n".join(TEXTS))
    path = write_rows(tmp_path)

    def plans(*words: str) -> list:
        assert main(["plan", str(model), "--bits-per-weight", "8", "--json", *words]) == 0
        return [plan | {"head_cost": None} for plan in json.loads(capsys.readouterr().out)["plans"]]

    expected = plans("--texts", str(tmp_path / "a.txt"))
    assert plans("--texts", str(path)) == plans("--texts", f"{path}:text") == expected
    assert plans("--texts", str(path), "--texts-column", "text") == expected
    assert plans("--token-counts", "tokenizer") != expected
    assert plans("--texts", str(path), "--texts", str(path)) != expected, "twice as many of each token"
    for words in (
        ["compress", str(model), "--method", "scalar", "--output", str(tmp_path / "out")],
        ["plan", str(model)],
    ):
        more = [] if words[0] == "compress" else ["--ratio", "4"]
        assert main([*words, *more, "--texts", "missing.jsonl"]) == 2
        assert "`texts` 'missing.jsonl' is no file" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
