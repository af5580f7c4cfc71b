"""Generated text is that of the decompressed model, whatever the cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import hf_compact_embeddings as hce

from ..cases import Case, compress_tiny, for_each_method
from ..tools import LargestTensor

PROMPTS = torch.tensor([[1, 17, 89, 42], [1, 8, 60, 71]])
# No token comes twice, so that a text says something of every step.
GREEDY = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "no_repeat_ngram_size": 1}


def assert_same_text(compact, native, **options: Any) -> None:
    ours = compact.generate(input_ids=PROMPTS, **GREEDY, **options)
    theirs = native.generate(input_ids=PROMPTS, **GREEDY, **options)
    assert torch.equal(ours, theirs)
    start = 1 if compact.config.is_encoder_decoder else PROMPTS.shape[1]
    assert ours.shape[1] == start + GREEDY["max_new_tokens"]
    assert len(ours[:, start:].unique()) > 1, "a text of one token says nothing"


@for_each_method("project", "dense")
@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "t5"])
def test_both_caches(architecture: str, cache: str, case: Case) -> None:
    _, compact = compress_tiny(architecture, case)
    assert_same_text(compact, hce.decompress(compact), cache_implementation=cache)


@for_each_method("project", "dense")
@pytest.mark.parametrize("architecture", ["gemma3_text", "bart"])
def test_scaled_tables(architecture: str, case: Case) -> None:
    _, compact = compress_tiny(architecture, case)
    assert_same_text(compact, hce.decompress(compact))


@for_each_method("project", "dense")
@pytest.mark.parametrize("options", [{"num_beams": 3}, {"use_cache": False}], ids=str)
def test_beams_and_no_cache(options: dict[str, Any], case: Case) -> None:
    _, compact = compress_tiny("llama", case)
    assert_same_text(compact, hce.decompress(compact), **options)


@for_each_method("project", "dense")
def test_after_a_change_of_size_and_a_save(case: Case, tmp_path: Path) -> None:
    _, compact = compress_tiny("llama", case)
    compact.generation_config.max_length = 33
    compact.resize_token_embeddings(125)
    compact.save_pretrained(tmp_path)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.generation_config.max_length == 33
    assert_same_text(loaded, hce.decompress(compact))


@for_each_method("project")
def test_a_step_of_decoding_never_builds_the_table(case: Case) -> None:
    rows = 50_000
    config = hce.CompactLlamaConfig(
        vocab_size=rows,
        hidden_size=64,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        tie_word_embeddings=True,
        compact_embeddings=case.config(init="random").to_dict(),
    )
    with LargestTensor() as building:
        model = transformers.AutoModelForCausalLM.from_config(config).eval()
    assert model.get_output_embeddings().weight.is_meta
    with torch.no_grad(), LargestTensor() as decoding:
        model(input_ids=torch.tensor([[7]]))
    dense_bytes = rows * 64 * 4
    assert building.bytes < dense_bytes
    assert rows * 4 <= decoding.bytes < dense_bytes
