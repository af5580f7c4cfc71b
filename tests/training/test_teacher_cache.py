"""What a teacher said is kept on disk row by row, and training from it is training with the teacher."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch

import hf_compact_embeddings as hce
from hf_compact_embeddings.training import teacher_cache
from hf_compact_embeddings.training.calibration import calibrate
from hf_compact_embeddings.training.losses import choose_losses, run
from hf_compact_embeddings.training.rows import Collator, Encoder
from hf_compact_embeddings.training.teacher_cache import TeacherCache, write_cache

from ..cases import compress_tiny, first_cases
from ..tiny_models import tiny_model
from ..tools import tiny_texts, tiny_tokenizer

CASE = first_cases("project", "dense")[0]
ARGS = {"max_steps": 6, "per_device_train_batch_size": 8, "use_cpu": True, "disable_tqdm": True}


def test_rows_come_back_with_what_the_teacher_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teacher_cache, "_ROWS_PER_SHARD", 5)
    teacher, tokenizer = tiny_model("bert"), tiny_tokenizer()
    collator = Collator(tokenizer)
    texts = [" ".join(text.split()[: 2 + i % 6]) for i, text in enumerate(tiny_texts(12))]
    rows = list(Encoder(tokenizer, 16, None, 0.0, 0).rows(texts))
    write_cache(tmp_path, iter(rows), teacher, collator, {"states": 1.0, "sentence": 1.0}, {"seed": 0}, batch_size=3)
    assert len(list(tmp_path.glob("*.safetensors"))) == 3 and not list(tmp_path.glob("*.part"))
    cache = TeacherCache(tmp_path)
    assert len(cache) == len(rows) == 12
    assert [len(row["input_ids"]) for row in cache] == [len(row["input_ids"]) for row in rows], "a loop ends"
    assert torch.equal(cache[-1]["input_ids"], rows[-1]["input_ids"])
    for index in (11, 0, 5, 4):
        found = cache[index]
        assert torch.equal(found["input_ids"], rows[index]["input_ids"])
        batch = collator([rows[index]])
        with torch.no_grad():
            states = run(teacher, teacher, batch, None).layers[-1][0]
        torch.testing.assert_close(found["teacher_states"].float(), states, atol=2e-3, rtol=2e-3)
        torch.testing.assert_close(found["teacher_sentence"], states.mean(0), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("head", ["BertModel", "BertForMaskedLM"])
def test_training_from_the_cache_is_training_with_the_teacher(head: str, tmp_path: Path) -> None:
    teacher, live = compress_tiny("bert", CASE, head=head)
    cached, alone = copy.deepcopy(live), copy.deepcopy(live)
    options = {"texts": tiny_texts(40), "tokenizer": tiny_tokenizer(), "max_length": 16, "args": ARGS}
    options |= {"trains": "tables", "table_learning_rate": 0.02}
    before = copy.deepcopy(live.state_dict())
    # A cache has no states but the final ones.
    usual = choose_losses(live, True, None, final_states_only=True)
    calibrate(live, teacher=teacher, losses=usual, **options)
    calibrate(cached, teacher=teacher, cache=tmp_path / "cache", **options)
    # The teacher and the texts are not needed any more.
    options.pop("texts")
    calibrate(alone, teacher=None, cache=tmp_path / "cache", losses=None if head == "BertModel" else _LM, **options)
    for name, value in live.compact_embedding.named_parameters():
        if name == "private_vectors":
            continue  # padding, which no loss sees
        key = f"{live.input_table_path}.{name}"
        torch.testing.assert_close(alone.state_dict()[key], cached.state_dict()[key], atol=1e-6, rtol=1e-5)
        # Kept in half precision, and of the distributions the best tokens only: near, but not the same.
        moved, apart = (value - before[key]).norm(), (value - cached.state_dict()[key]).norm()
        assert 0 < moved and apart < 0.05 * moved, (name, float(apart / moved))


_LM = {"logits": 1.0, "states": 1.0}


def test_a_cache_of_other_rows_is_refused(tmp_path: Path) -> None:
    teacher, compact = compress_tiny("bert", CASE)
    options = {"teacher": teacher, "texts": tiny_texts(40), "tokenizer": tiny_tokenizer(), "args": ARGS}
    calibrate(compact, cache=tmp_path, max_length=16, **options)
    with pytest.raises(hce.CompactConfigError, match="was made with max_length=16, but max_length=20 is asked for"):
        calibrate(compact, cache=tmp_path, max_length=20, **options)
    with pytest.raises(hce.CompactConfigError, match="was made with teacher='.*', but teacher='.*' is asked for"):
        calibrate(compact, cache=tmp_path, max_length=16, **options | {"teacher": tiny_model("bert", seed=1)})
    with pytest.raises(hce.CompactConfigError, match="keeps final states only"):
        calibrate(compact, cache=tmp_path, max_length=16, losses={"all_states": 1.0}, **options)
    manifest = tmp_path / "teacher_cache.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"format_version": 9}))
    with pytest.raises(hce.CheckpointError, match="has format 9"):
        calibrate(compact, cache=tmp_path, max_length=16, **options)
    manifest.unlink()
    with pytest.raises(hce.CompactConfigError, match="`teacher` is missing"):
        calibrate(compact, **{**options, "teacher": None}, cache=tmp_path, losses={"labels": 1.0})


def test_a_folder_that_is_no_cache(tmp_path: Path) -> None:
    with pytest.raises(hce.CheckpointError, match="holds no teacher's outputs"):
        TeacherCache(tmp_path)
