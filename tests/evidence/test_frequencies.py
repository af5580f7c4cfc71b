"""Token counts are what a plain loop over the texts finds, or what the tokenizer tells."""

from __future__ import annotations

import math

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from hf_compact_embeddings.evidence import frequencies
from hf_compact_embeddings.evidence.frequencies import count_tokens, counts_from_tokenizer
from hf_compact_embeddings.modeling.errors import CompactConfigError

from ..tiny_models import VOCABULARY
from ..tools import tiny_texts, tiny_tokenizer


def test_counts() -> None:
    counts = count_tokens(["w5 w6 w5", "", "nonsense w119"], tiny_tokenizer(), VOCABULARY)
    assert counts.shape == (VOCABULARY,)
    wanted = {1: 1, 2: 2, 3: 2, 5: 2, 6: 1, 119: 1}
    assert {i: int(n) for i, n in enumerate(counts) if n} == wanted


def test_counts_of_many_texts_and_long_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [*tiny_texts(150), " ".join(["w7"] * 5_000)]
    whole = count_tokens(texts, tiny_tokenizer(), VOCABULARY)
    assert whole.sum() == 150 * 10 + 5_002
    monkeypatch.setattr(frequencies, "_TEXTS_PER_BATCH", 7)
    assert torch.equal(count_tokens(iter(texts), tiny_tokenizer(), VOCABULARY), whole)


def test_tokens_beyond_the_table_are_not_counted() -> None:
    counts = count_tokens(["w5 w119"], tiny_tokenizer(), 100)
    assert counts.shape == (100,) and counts.sum() == 3


@pytest.mark.parametrize("texts", [[], [""], iter([])], ids=["none", "empty", "iterator"])
def test_no_tokens(texts) -> None:
    with pytest.raises(CompactConfigError, match="`texts` gave no tokens"):
        count_tokens(texts, tiny_tokenizer(), VOCABULARY)


def test_pairs_are_counted_as_two_texts() -> None:
    counts = count_tokens([("w5 w6", "w7"), "w5"], tiny_tokenizer(), VOCABULARY)
    assert counts[[2, 5, 6, 7]].tolist() == [3, 2, 1, 1]


def tokenizer_of(model: models.Model) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model), unk_token="<unk>")


def test_a_tokenizer_tells_by_probabilities_merges_or_order() -> None:
    unigram = tokenizer_of(models.Unigram([("<unk>", 0.0), ("a", -1.0), ("b", -3.0)], unk_id=0))
    counts = counts_from_tokenizer(unigram, 4)
    assert counts[1] / counts[2] == pytest.approx(math.exp(2)) and counts[3] == 0
    vocabulary = {token: place for place, token in enumerate(["<unk>", "a", "b", "c", "bc", "ab"])}
    merged = counts_from_tokenizer(tokenizer_of(models.BPE(vocabulary, [("a", "b"), ("b", "c")])), 6)
    assert merged[5] > merged[4] > merged[1] == merged[2] == merged[3] > 0, "what is no merge is a character"
    words = {token: place for place, token in enumerate(["<unk>", "[unused1]", "a", "the", "##s", "##ing", "b", "of"])}
    listed = counts_from_tokenizer(tokenizer_of(models.WordPiece(words, unk_token="<unk>")), 7)
    assert listed.shape == (7,) and listed[1] == 0, "nothing in a text gives it"
    assert listed[3] > listed[5] > listed[2] == listed[4] == listed[6] > 0
    for found in (counts, merged, listed):
        assert found[0] == found.max(), "special tokens are the most frequent"
