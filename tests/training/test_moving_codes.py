"""Codes that move while a model is calibrated: when, by what, and that nothing else is different."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForMaskedLM, PreTrainedModel

import hf_compact_embeddings as hce
from hf_compact_embeddings.fitting import recoder_of
from hf_compact_embeddings.fitting.recoding import movable_rows
from hf_compact_embeddings.training.moving_codes import MOVING_ROWS, MovingCodes
from hf_compact_embeddings.training.trainer import CalibrationError

from ..cases import TINY_CASES, Case, all_cases, build_structure, compress_tiny, first_cases
from ..launching import run, run_together
from ..tiny_models import tiny_inputs, tiny_model
from ..tools import assert_same_state, tiny_texts, tiny_tokenizer
from .test_calibration import Losses, Poison, tiny_calibrate

MOVING = [case for case in first_cases("project", "dense") if recoder_of(build_structure(case)) is not None]
CASE = next(case for case in MOVING if case.method == "subspace")
for_moving = pytest.mark.parametrize("case", MOVING, ids=str)


def codes_of(compact: PreTrainedModel) -> Tensor:
    return compact.compact_embedding.codes.clone()


@for_moving
def test_codes_move_and_the_result_is_a_model_like_any_other(case: Case, tmp_path: Path) -> None:
    teacher, compact = compress_tiny("bert", case)
    before, size = copy.deepcopy(compact), hce.inspect(compact).compact_bytes
    seen = Losses()
    args = {"max_steps": 8, "output_dir": str(tmp_path), "save_strategy": "no"}
    tiny_calibrate(compact, teacher, table_learning_rate=0.05, recode_steps=3, callbacks=[seen], args=args)
    assert not torch.equal(codes_of(compact), codes_of(before))
    # Nothing but codes and floats is other than before; at the end they are chosen once more.
    other = {
        k
        for k, v in compact.compact_embedding.named_buffers()
        if not torch.equal(v, before.get_buffer(f"{compact.input_table_path}.{k}"))
    }
    assert other == {"codes"}
    shares = {step: log["codes_moved"] for step, log in enumerate(seen.logs, 1) if "codes_moved" in log}
    assert set(shares) == {3, 6, 8} and all(0 <= share <= 1 for share in shares.values()) and max(shares.values()) > 0
    assert compact.compact_embedding.state_dict().keys() == before.compact_embedding.state_dict().keys()
    assert hce.inspect(compact).compact_bytes == size
    assert compact.config.compact_source["calibration"]["recode_steps"] == 3
    compact.compact_embedding.check_values()
    loaded = AutoModelForMaskedLM.from_pretrained(tmp_path)
    assert_same_state(loaded, compact)
    assert not (tmp_path / MOVING_ROWS).exists() and not compact.compact_embedding._forward_hooks


@pytest.mark.parametrize("head", ["BertModel", "BertForMaskedLM"])
def test_codes_that_move_leave_less_loss(head: str) -> None:
    left = {}
    for every in (None, 4):
        teacher, compact = compress_tiny("bert", CASE, head=head)
        seen = Losses()
        args = {"max_steps": 24, "eval_strategy": "steps", "eval_steps": 24}
        options = {"texts": tiny_texts(100), "eval_texts": tiny_texts(40), "callbacks": [seen], "trains": "all"}
        tiny_calibrate(compact, teacher, recode_steps=every, args=args, **options)
        left[every] = seen.held_out[-1]
    assert left[4] < (0.95 if head == "BertForMaskedLM" else 1.0) * left[None], left


@pytest.mark.parametrize(
    ("architecture", "head"),
    [
        ("bert", None),
        ("bert", "BertModel"),
        ("llama-untied", None),
        ("gemma3_text", None),
        ("t5", None),
        ("t5", "T5Model"),
    ],
)
def test_the_gradient_is_that_of_a_dense_table(architecture: str, head: str | None) -> None:
    """As if coding changed nothing: scaled tables, and those that several modules read, too."""
    teacher, compact = compress_tiny(architecture, CASE, head=head, private_rows=4, token_counts=torch.arange(120.0))
    moving = MovingCodes(compact, teacher, every=1, rate=0.1)
    dense = hce.decompress(compact)
    for model in (dense, compact):
        with moving.watching():
            outputs = model(**tiny_inputs(model, batch=4))
            output = outputs[0]
            direction = torch.randn(output.shape, generator=torch.Generator().manual_seed(1))
            (output * direction).sum().backward()
            ids, gradients = moving._gathered() if model is compact else (None, None)
    found = torch.zeros(120, gradients.shape[1]).index_add(0, ids, gradients)
    goal = dense.get_input_embeddings().weight.grad.clone()
    movable = movable_rows(compact.compact_embedding)
    assert 0 < int((~movable).sum()) < 10
    goal[~movable] = 0.0
    assert goal.abs().max() > 0.01
    torch.testing.assert_close(found, goal, atol=1e-4, rtol=1e-4)


def test_rows_start_from_the_teacher_and_move_where_texts_are() -> None:
    teacher, compact = compress_tiny("bert", CASE, head="BertModel")
    decoded = compact.compact_embedding.dense().detach()
    goals = {}
    for name, original in (("teacher", teacher), ("codes", None)):
        moving = MovingCodes(compact, original, every=1, rate=0.5)
        goals[name] = decoded + moving._state["offsets"]
    torch.testing.assert_close(goals["teacher"], teacher.get_input_embeddings().weight.detach())
    torch.testing.assert_close(goals["codes"], decoded)
    with moving.watching():
        ids = torch.tensor([[7, 8, 8, 9]])
        compact(input_ids=ids).last_hidden_state[..., :3].square().mean().backward()
        moving._step(moving.rate, None)
    offsets = moving._state["offsets"]
    assert offsets.any(1).nonzero().flatten().tolist() == [7, 8, 9]
    # The first step is the rate times the size of the table, whatever the size of the gradient.
    steps = offsets[[7, 8, 9]].square().mean(1).sqrt()
    torch.testing.assert_close(steps, (0.5 * decoded.square().mean().sqrt()).expand(3), atol=1e-5, rtol=1e-4)


def test_accumulated_and_scheduled_steps() -> None:
    states = []
    for split in (1, 2):
        teacher, compact = compress_tiny("bert", CASE)
        moving: list[MovingCodes] = []
        args = {"per_device_train_batch_size": 8 // split, "gradient_accumulation_steps": split, "max_steps": 3}
        options = {"losses": {"logits": 1.0}, "predicted_share": 1.0, "texts": tiny_texts(64)}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(MovingCodes, "news", lambda self, seen=moving: seen.append(self) or {})
            tiny_calibrate(compact, teacher, recode_steps=2, args=args, **options)
        states.append(moving[0]._state)
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, atol=1e-3 * float(value.abs().max()), rtol=1e-2, msg=name)


def test_what_cannot_move_is_refused() -> None:
    dispersed = next(case for case in TINY_CASES["subspace"] if case.options.get("assignment") == "dispersed")
    for case in [case for case in first_cases("project", "dense") if case not in MOVING] + [dispersed]:
        teacher, compact = compress_tiny("bert", case)
        with pytest.raises(hce.CompactConfigError, match=f"`recode_steps` is 5, but '{case.method}'.*no codes"):
            tiny_calibrate(compact, teacher, recode_steps=5)
    assert "factorized" in {case.method for case in all_cases() if case.method not in {m.method for m in MOVING}}
    teacher, compact = compress_tiny("bert", CASE)
    for every in (0, -3, 2.5, True):
        with pytest.raises(hce.CompactConfigError, match="`recode_steps` is .*whole number above 0"):
            tiny_calibrate(compact, teacher, recode_steps=every)
    with pytest.raises(hce.CompactConfigError, match="`recode_steps` needs the whole table.*torch_compile"):
        tiny_calibrate(compact, teacher, recode_steps=5, args={"torch_compile": True})
    other = tiny_model("electra", head="ElectraModel", embedding_size=8)
    _, narrow = compress_tiny("electra", CASE, head="ElectraModel")
    with pytest.raises(hce.CompactConfigError, match=r"`teacher` has a table \(120, 8\)"):
        tiny_calibrate(narrow, other, recode_steps=5)


def test_a_loss_that_breaks_gives_the_codes_back(tmp_path: Path) -> None:
    teacher, compact = compress_tiny("bert", CASE)
    start = copy.deepcopy(compact.state_dict())
    options: dict[str, Any] = {"recode_steps": 1, "table_learning_rate": 0.05}
    with pytest.raises(CalibrationError, match="values again that it had before"):
        tiny_calibrate(compact, teacher, callbacks=[Poison(compact, 3)], **options)
    assert all(torch.equal(value, start[name]) for name, value in compact.state_dict().items())
    args = {"output_dir": str(tmp_path), "save_steps": 2}
    with pytest.raises(CalibrationError, match="values of checkpoint-2 again"):
        tiny_calibrate(compact, teacher, callbacks=[Poison(compact, 4)], args=args, **options)
    stored = load_file(tmp_path / "checkpoint-2" / "model.safetensors")
    name = f"{compact.input_table_path}.codes"
    assert torch.equal(codes_of(compact), stored[name]) and not torch.equal(stored[name], start[name])


def calibrated(folder: Path, name: str, batch_size: int, ranks: int) -> list[dict[str, Any]]:
    """Run the script in processes that train together, and return what each found."""
    words = ["-m", "tests.training.process_script", folder, name, batch_size]
    if ranks > 1:
        run_together(*words, home=folder / "home", ranks=ranks)
    else:
        run(*words, home=folder / "home")
    return [json.loads((folder / f"{name}-{rank}.json").read_text()) for rank in range(ranks)]


def test_two_processes_end_with_the_same_codes(tmp_path: Path) -> None:
    teacher, compact = compress_tiny("bert", CASE)
    teacher.save_pretrained(tmp_path / "teacher")
    tiny_tokenizer().save_pretrained(tmp_path / "teacher")
    compact.save_pretrained(tmp_path / "compact")
    (tmp_path / "texts.json").write_text(json.dumps(tiny_texts(140)))
    alone = calibrated(tmp_path, "alone", 8, 1)
    both = calibrated(tmp_path, "both", 4, 2)
    assert [result["processes"] for result in alone + both] == [1, 2, 2]
    assert both[0]["digest"] == both[1]["digest"]
    assert all(result["moved"] for result in alone + both)
    # Before any code can tip over for a rounding error, the trained rows are those of one process.
    one, two = (load_file(tmp_path / name / "checkpoint-3" / MOVING_ROWS) for name in ("alone", "both"))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, atol=1e-3 * float(value.abs().max()), rtol=1e-2, msg=name)


def test_two_processes_share_a_stream(tmp_path: Path) -> None:
    """A batch has more rows than places or the other way round, so that no process may cut it up for the others."""
    teacher, compact = compress_tiny("bert", CASE)
    teacher.save_pretrained(tmp_path / "teacher")
    tiny_tokenizer().save_pretrained(tmp_path / "teacher")
    compact.save_pretrained(tmp_path / "compact")
    (tmp_path / "stream").mkdir()
    rows = "".join(json.dumps({"text": text}) + "\n" for text in tiny_texts(140))
    (tmp_path / "stream" / "train.jsonl").write_text(rows)
    both = calibrated(tmp_path, "streamed", 4, 2)
    assert [result["processes"] for result in both] == [2, 2]
    assert both[0]["digest"] == both[1]["digest"]
