"""The tiny compact checkpoint that the tests push, and the dense model it was made from."""

from __future__ import annotations

import functools
from pathlib import Path

from transformers import PreTrainedModel

import hf_compact_embeddings as hce
from hf_compact_embeddings.evaluation.report import Report

from ..tiny_models import tiny_model
from ..tools import tiny_tokenizer
from .server import HubServer

REPO = f"{HubServer.user}/compact"
BASE = f"{HubServer.user}/base"
BASE_CARD = """---
license: apache-2.0
language:
- en
- de
tags:
- pytorch
- legal
pipeline_tag: sentence-similarity
---

# The original
"""
OPTIONS = {"num_subspaces": 4, "codebook_size": 16}


@functools.cache
def dense_model(head: str = "BertForMaskedLM") -> PreTrainedModel:
    return tiny_model("bert", head)


@functools.cache
def compact_model(head: str = "BertForMaskedLM") -> PreTrainedModel:
    """Nobody may change it: all tests share it."""
    return hce.compress(dense_model(head), "subspace", tokenizer=tiny_tokenizer(), **OPTIONS)


@functools.cache
def compact_report() -> Report:
    return hce.inspect(compact_model(), against=dense_model())


def push(**options: object) -> hce.hub.Push:
    """Push the tiny checkpoint."""
    arguments = {"tokenizer": tiny_tokenizer(), "report": compact_report()} | options
    return hce.push_to_hub(compact_model(), REPO, **arguments)


def sentence_folder(folder: Path, model: PreTrainedModel) -> Path:
    """A dense sentence-transformers folder: the model, its tokenizer and the pooling files."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Pooling, Transformer

    model.save_pretrained(folder / "plain")
    tiny_tokenizer().save_pretrained(folder / "plain")
    transformer = Transformer(str(folder / "plain"))
    pooling = Pooling(model.config.hidden_size, pooling_mode="mean")
    SentenceTransformer(modules=[transformer, pooling], device="cpu").save(str(folder / "sentences"))
    return folder / "sentences"
