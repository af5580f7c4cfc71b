"""What is known of a head that is not tied: how tokens are used, and what errors do to its scores."""

from __future__ import annotations

import copy
import logging
from typing import Any

import pytest
import torch
import transformers
from transformers import PreTrainedModel

import hf_compact_embeddings as hce
from hf_compact_embeddings import compression
from hf_compact_embeddings.evidence import gather, gathering, score_sensitivity
from hf_compact_embeddings.evidence.sensitivity import find_sensitivity
from hf_compact_embeddings.evidence.tables import find_tables, share_of
from hf_compact_embeddings.modeling.structure import CompactEmbedding

from ..tiny_models import VOCABULARY, tiny_model
from ..tools import tiny_texts, tiny_tokenizer

NEEDS = ("counts", "sensitivity")


def untied() -> PreTrainedModel:
    model = tiny_model("llama-untied")
    with torch.no_grad():
        model.lm_head.weight.normal_(std=0.5, generator=torch.Generator().manual_seed(1))
    return model


def evidence_of(model: PreTrainedModel, tables: str = "all", **options: Any) -> list[gathering.Evidence]:
    found = find_tables(model, tables)
    given = {"tokenizer": tiny_tokenizer(), "texts": tiny_texts(40)} | options
    first = gather(model, found[0], **given)
    return [first.of(table) for table in found]


@torch.no_grad()
def test_errors_in_a_head_cost_what_they_do_to_its_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(score_sensitivity, "_SHRINKAGE", 0.0)
    monkeypatch.setattr(score_sensitivity, "_SHARE_OF_COMMON", 0.0)
    model, tokenizer, texts = untied().requires_grad_(False), tiny_tokenizer(), tiny_texts(8)
    states = []
    handle = model.lm_head.register_forward_pre_hook(lambda _, arguments: states.append(arguments[0][0]))
    logits = torch.cat([model(**tokenizer(text, return_tensors="pt")).logits[0] for text in texts]).double()
    handle.remove()
    predicted, entering = logits.softmax(-1), torch.cat(states).double()
    doubts = predicted * (1 - predicted)
    weights = doubts.sum(1)
    (head,) = find_tables(model, "head")
    found = find_sensitivity(texts, tokenizer, model, table=head)
    expected = torch.cov(entering.T, correction=0, aweights=weights) * weights.mean()
    torch.testing.assert_close(found.metric, expected, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(found.doubts, doubts.sum(0), atol=1e-4, rtol=1e-4)
    assert found.states is not None


def test_each_table_has_its_own_part() -> None:
    model = untied()
    of_input, of_head = (one.fit_source(NEEDS) for one in evidence_of(model))
    alone = gather(model, find_tables(model, "input")[0], tokenizer=tiny_tokenizer(), texts=tiny_texts(40))
    assert torch.equal(of_input.metric, alone.fit_source(NEEDS).metric)
    assert torch.equal(of_input.counts, alone.counts) and not of_input.tied
    assert of_head.tied and of_head.padding_idx is None and of_head.scale == 1.0
    assert torch.equal(of_head.table, model.lm_head.weight.detach())
    assert not torch.allclose(of_input.metric, of_head.metric)
    # Half by how often tokens occur, half by how often the model might give them.
    doubts = find_sensitivity(tiny_texts(40), tiny_tokenizer(), model, table=find_tables(model, "head")[0]).doubts
    expected = (alone.counts / alone.counts.sum() + doubts / doubts.sum()) / 2
    torch.testing.assert_close(of_head.counts / of_head.counts.sum(), expected, rtol=1e-6, atol=0.0)
    # Where errors weigh as they are, nothing tells but how often tokens are read.
    plain = evidence_of(model, "head")[0].fit_source(("counts",))
    assert torch.equal(plain.counts, alone.counts) and plain.metric is None


def test_what_both_need_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    count_tokens = gathering.count_tokens

    def counted(*arguments: Any) -> Any:
        read.append("counts")
        return count_tokens(*arguments)

    monkeypatch.setattr(gathering, "count_tokens", counted)
    hce.compress(untied(), "rotated", bits_per_weight=8, tables="all", tokenizer=tiny_tokenizer(), texts=tiny_texts(40))
    assert read == ["counts"]


def test_a_model_that_reads_no_texts_warns_once(caplog: pytest.LogCaptureFixture) -> None:
    config = transformers.WhisperConfig(
        vocab_size=VOCABULARY,
        **{"d_model": 24, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32},
        **{"encoder_attention_heads": 2, "decoder_attention_heads": 2, "max_source_positions": 20},
        **{"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1, "num_mel_bins": 8},
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    model = transformers.WhisperForConditionalGeneration(config).eval()
    transformers.utils.logging.enable_propagation()
    with caplog.at_level(logging.WARNING):
        compact = hce.compress(
            model, "rotated", bits_per_weight=8, tables="all", tokenizer=tiny_tokenizer(), texts=tiny_texts(20)
        )
    transformers.utils.logging.disable_propagation()
    told = [record.message for record in caplog.records if "How sensitive" in record.message]
    assert len(told) == 1 and "it reads `input_features`, and no texts" in told[0]
    assert list(compact.compact_tables) == ["model.decoder.embed_tokens", "proj_out.table"]


def test_rows_that_a_head_would_give_too_often_are_kept_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    judged: list[int] = []

    def two_rows(structure: CompactEmbedding, rows: torch.Tensor, states: torch.Tensor, most: int) -> torch.Tensor:
        judged.append(len(states))
        return torch.tensor([77, 78]) if len(judged) == 1 else torch.empty(0, dtype=torch.int64)

    monkeypatch.setattr(gathering, "overrated_rows", two_rows)
    monkeypatch.setattr(compression, "_SHARE_OF_OVERRATED", 0.25)
    given = {"tokenizer": tiny_tokenizer(), "texts": tiny_texts(40), "bits_per_weight": 8.0}
    compact = hce.compress(untied(), "rotated", tables="all", **given)
    # Of the head alone: what is read takes no probability from others.
    assert len(judged) == 2 and judged[0] > 0
    kept = [set(table.private_id_list().tolist()) for table in compact.compact_tables.values()]
    assert not {77, 78} & kept[0] and {77, 78} <= kept[1]


def test_a_head_is_fitted_where_the_model_gives_much() -> None:
    """Tokens that are given often and never read, and the other way round, are told apart."""
    model = untied()
    with torch.no_grad():
        # The head gives the later half of the vocabulary only, and texts hold the earlier half.
        model.lm_head.weight[: VOCABULARY // 2] *= 0.2
        model.lm_head.weight[VOCABULARY // 2 :] *= 3.0
    texts = [" ".join(f"w{number}" for number in range(5 + start, 15 + start)) for start in range(40)]
    of_input, of_head = (one.fit_source(NEEDS) for one in evidence_of(model, texts=texts))
    half = VOCABULARY // 2
    assert float(of_input.counts[:half].sum()) > 0.9 * float(of_input.counts.sum())
    assert float(of_head.counts[half:].sum()) > 0.35 * float(of_head.counts.sum())


def test_shares_are_whole_and_within() -> None:
    tables = find_tables(untied(), "all")
    assert [share_of("5KB", tables, table) for table in tables] == [2500, 2500]
    assert sum(share_of(4999, tables, table) for table in tables) <= 4999
    assert share_of("5KB", tables[:1], tables[0]) == "5KB"


def test_finding_changes_nothing() -> None:
    model = untied()
    before = copy.deepcopy(model.state_dict())
    for one in evidence_of(model):
        assert one.sensitivity is not None
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
