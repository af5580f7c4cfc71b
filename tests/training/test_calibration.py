"""calibrate(): the loss falls, only what may train does, and what breaks is undone."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForMaskedLM, PreTrainedModel, TrainerCallback, TrainingArguments, modeling_utils

import hf_compact_embeddings as hce
from hf_compact_embeddings.cli.main import main
from hf_compact_embeddings.evidence.texts import HubTexts
from hf_compact_embeddings.training.calibration import calibrate
from hf_compact_embeddings.training.losses import run
from hf_compact_embeddings.training.recipes import recipe_for
from hf_compact_embeddings.training.trainer import (
    EXACT_TABLE,
    CalibrationError,
    CalibrationTrainer,
    last_checkpoint,
    load_exact_table,
)

from ..cases import Case, compress_tiny, first_cases, for_each_method
from ..launching import run_together
from ..tiny_models import tiny_inputs, tiny_model
from ..tools import assert_same_state, tiny_texts, tiny_tokenizer

CASE = first_cases("project", "dense")[0]
ARGS = {"max_steps": 6, "per_device_train_batch_size": 8, "use_cpu": True, "disable_tqdm": True, "logging_steps": 1}


class Losses(TrainerCallback):
    """Collects what is logged."""

    def __init__(self) -> None:
        self.logs: list[dict[str, Any]] = []
        self.held_out: list[float] = []

    def on_log(self, args, state, control, logs=None, **_):
        if "loss" in logs:
            self.logs.append(logs)
        if "eval_loss" in logs:
            self.held_out.append(logs["eval_loss"])


def tiny_calibrate(compact: PreTrainedModel, teacher: Any, **options: Any) -> PreTrainedModel:
    settings = {"texts": tiny_texts(40), "tokenizer": tiny_tokenizer(), "max_length": 16, "table_learning_rate": 0.01}
    args = ARGS | options.pop("args", {})
    return calibrate(compact, teacher=teacher, **{**settings, **options}, args=args)


@for_each_method("project")
def test_the_table_comes_nearer_and_nothing_else_moves(case: Case) -> None:
    teacher, compact = compress_tiny("bert", case)
    before, original = copy.deepcopy(compact.state_dict()), copy.deepcopy(teacher.state_dict())
    seen = Losses()
    assert tiny_calibrate(compact, teacher, trains="tables", callbacks=[seen], args={"max_steps": 15}) is compact
    path = compact.input_table_path + "."
    moved = {name for name, tensor in compact.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved and all(name.startswith(path) and before[name].is_floating_point() for name in moved), moved
    assert all(torch.equal(tensor, original[name]) for name, tensor in teacher.state_dict().items())
    # A structure that holds so small a table without error has nothing to learn.
    assert seen.logs[0]["loss"] < 0.01 or seen.logs[-1]["loss"] < seen.logs[0]["loss"]
    assert {"loss_logits", "loss_states"} <= set(seen.logs[0])
    assert not compact.training and all(p.requires_grad for p in compact.parameters())
    # What is in memory is what a saved file holds.
    rounded = copy.deepcopy(compact)
    rounded.compact_embedding.round_to_storage()
    assert_same_state(rounded, compact)


def test_pairs_are_read_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher, compact = compress_tiny("bert", CASE)
    tokenizer = tiny_tokenizer()
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    texts = [*zip(tiny_texts(20), reversed(tiny_texts(20)), strict=True), *tiny_texts(4)]
    before = copy.deepcopy(compact.state_dict())
    seen: list[set[int]] = []
    forward = type(teacher).forward

    def watched(self: Any, *inputs: Any, token_type_ids: Any = None, **others: Any) -> Any:
        seen.append(set(token_type_ids.unique().tolist()))
        return forward(self, *inputs, token_type_ids=token_type_ids, **others)

    monkeypatch.setattr(type(teacher), "forward", watched)
    # The teacher's outputs come from a cache that the first call writes.
    for _ in range(2):
        options = {"tokenizer": tokenizer, "losses": {"states": 1.0}, "cache": tmp_path / "cache"}
        tiny_calibrate(compact, teacher, texts=texts, args={"max_steps": 2}, **options)
    assert {0, 1} in seen and any(not torch.equal(value, before[name]) for name, value in compact.state_dict().items())


@pytest.mark.parametrize(
    ("architecture", "losses"),
    [
        ("bert", {"labels": 1.0}),
        ("gpt2", None),
        ("llama-untied", {"labels": 0.5, "logits": 0.5, "all_states": 1.0}),
        ("gemma3_text", None),
        ("t5", {"states": 1.0, "relations": 1.0}),
        ("electra", {"all_states": 1.0}),
    ],
)
def test_architectures_and_losses(architecture: str, losses: dict | None) -> None:
    teacher, compact = compress_tiny(architecture, CASE)
    seen = Losses()
    args = {"max_steps": 12, "eval_on_start": True, "eval_strategy": "steps", "eval_steps": 12}
    tiny_calibrate(compact, teacher, losses=losses, callbacks=[seen], eval_texts=tiny_texts(40), args=args)
    assert len(seen.held_out) == 2 and seen.held_out[1] < seen.held_out[0]


@pytest.mark.parametrize(("architecture", "head"), [("llama", None), ("bert", None), ("bert", "BertModel")])
def test_what_is_not_given_follows_the_model(architecture: str, head: str | None) -> None:
    teacher, compact = compress_tiny(architecture, CASE, head=head)
    recipe, given = recipe_for(compact), {"texts": tiny_texts(20), "tokenizer": tiny_tokenizer(), "teacher": teacher}
    usual = copy.deepcopy(compact)
    calibrate(usual, **given, args={"max_steps": 1, "use_cpu": True, "disable_tqdm": True})
    noted = usual.config.compact_source["calibration"]
    assert noted["losses"] == recipe.losses and noted["trains"] == recipe.trains
    rates = (noted["learning_rate"], noted["table_learning_rate"])
    assert rates == (recipe.learning_rate, recipe.table_learning_rate) and noted["batch_size"] == recipe.batch
    tiny_calibrate(compact, teacher, trains="tables", losses={"states": 1.0}, args={"learning_rate": 3e-6})
    noted = compact.config.compact_source["calibration"]
    assert noted["losses"] == {"states": 1.0} and noted["trains"] == "tables"
    assert (noted["learning_rate"], noted["table_learning_rate"], noted["batch_size"]) == (3e-6, 0.01, 8)


@pytest.mark.parametrize(
    ("architecture", "norm"),
    [
        ("bert", "bert.embeddings.LayerNorm"),
        ("llama", "model.layers.0.input_layernorm"),
        ("gpt2", "transformer.h.0.ln_1"),
    ],
)
def test_the_norm_that_reads_the_table_may_train_too(architecture: str, norm: str) -> None:
    teacher, compact = compress_tiny(architecture, CASE)
    before = copy.deepcopy(compact.state_dict())
    tiny_calibrate(compact, teacher, trains="tables+norm", args={"learning_rate": 0.01})
    path = compact.input_table_path + "."
    moved = {name for name, value in compact.state_dict().items() if not torch.equal(value, before[name])}
    assert {name.rpartition(".")[0] for name in moved if not name.startswith(path)} == {norm}


@pytest.mark.parametrize(("architecture", "count"), [("bert", 6), ("llama", 5)])
def test_all_norms_may_train_too(architecture: str, count: int) -> None:
    """Two in each of two layers, and one at an end, behind the table or before the head; BERT has both."""
    teacher, compact = compress_tiny(architecture, CASE)
    before = copy.deepcopy(compact.state_dict())
    tiny_calibrate(compact, teacher, trains="tables+norms", args={"learning_rate": 0.01})
    path = compact.input_table_path + "."
    moved = {name for name, value in compact.state_dict().items() if not torch.equal(value, before[name])}
    norms = {name.rpartition(".")[0] for name in moved if not name.startswith(path)}
    assert len(norms) == count and all("norm" in name.lower() for name in norms)


def test_everything_may_train_at_rates_of_its_own() -> None:
    teacher, compact = compress_tiny("bert", CASE)
    before = copy.deepcopy(compact.state_dict())
    args = {
        "learning_rate": 0.01,
        "max_steps": 1,
        "optim": "sgd",
        "max_grad_norm": 0.0,
        "lr_scheduler_type": "constant",
    }
    tiny_calibrate(compact, teacher, trains="all", table_learning_rate=1e-30, args=args)
    path = compact.input_table_path + "."
    moved = {name for name, value in compact.state_dict().items() if not torch.equal(value, before[name])}
    assert len(moved) > 20 and not [name for name in moved if name.startswith(path)]


def test_a_frozen_parameter_is_frozen_again() -> None:
    teacher, compact = compress_tiny("bert", CASE)
    compact.cls.predictions.bias.requires_grad_(False)
    compact.train()
    tiny_calibrate(compact, teacher, trains="all")
    assert compact.training and not compact.cls.predictions.bias.requires_grad


def test_without_a_teacher_the_text_is_the_goal() -> None:
    _, compact = compress_tiny("bert", CASE)
    seen = Losses()
    tiny_calibrate(compact, None, trains="all", callbacks=[seen], args={"max_steps": 20, "learning_rate": 0.01})
    assert seen.logs[-1]["loss"] < 0.9 * seen.logs[0]["loss"]


def test_a_stream_and_gradient_checkpointing(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("\n".join(tiny_texts(100)))
    teacher, compact = compress_tiny("bert", CASE)
    seen = Losses()
    stream = HubTexts(str(tmp_path))
    tiny_calibrate(compact, teacher, texts=stream, callbacks=[seen], args={"gradient_checkpointing": True})
    assert len(seen.logs) == 6
    with pytest.raises(hce.CompactConfigError, match="max_steps"):
        calibrate(compact, teacher=teacher, texts=stream, tokenizer=tiny_tokenizer(), args={"use_cpu": True})


@pytest.mark.parametrize("architecture", ["bert", "llama"])
def test_half_precision(architecture: str) -> None:
    teacher, compact = compress_tiny(architecture, CASE)
    seen = Losses()
    tiny_calibrate(compact, teacher, callbacks=[seen], args={"bf16": True})
    assert len(seen.logs) == 6 and compact.dtype == torch.float32


def test_the_best_on_held_out_texts_is_kept(tmp_path: Path) -> None:
    teacher, compact = compress_tiny("bert", CASE)
    args = TrainingArguments(
        **ARGS,
        output_dir=str(tmp_path),
        eval_strategy="steps",
        eval_steps=2,
        save_steps=2,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
    )
    calibrate(
        compact,
        teacher=teacher,
        texts=tiny_texts(40),
        eval_texts=tiny_texts(30, seed=1),
        tokenizer=tiny_tokenizer(),
        args=args,
        max_length=16,
    )
    assert_same_state(AutoModelForMaskedLM.from_pretrained(tmp_path), compact)


def test_a_teacher_by_its_folder_and_what_is_noted(tmp_path: Path) -> None:
    teacher, compact = compress_tiny("bert", CASE)
    teacher.save_pretrained(tmp_path / "teacher")
    tiny_tokenizer().save_pretrained(tmp_path / "teacher")
    tiny_calibrate(compact, tmp_path / "teacher", args={"output_dir": str(tmp_path / "out")})
    loaded = AutoModelForMaskedLM.from_pretrained(tmp_path / "out")
    assert_same_state(loaded, compact)
    noted = loaded.config.compact_source["calibration"]
    assert noted["steps"] == 6 and noted["batch_size"] == 8 and noted["teacher"] is True
    tiny_tokenizer("[BOS]").save_pretrained(tmp_path / "teacher")
    with pytest.raises(hce.CompactConfigError, match="another tokenizer"):
        tiny_calibrate(compact, tmp_path / "teacher")


@pytest.mark.parametrize(
    ("kind", "named"), [("None", False), ("dictionary", False), ("dictionary", True), ("TrainingArguments", True)]
)
def test_the_model_is_saved_where_a_folder_is_named(
    kind: str, named: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[Path] = []
    native = CalibrationTrainer.save_model
    monkeypatch.setattr(
        CalibrationTrainer, "save_model", lambda self, *args, **options: saved.append(args) or native(self, *args)
    )
    fields = ARGS | {"save_strategy": "no"} | ({"output_dir": str(tmp_path / "out")} if named else {})
    args = {"None": None, "dictionary": fields, "TrainingArguments": fields}[kind]
    if kind == "TrainingArguments":
        args = TrainingArguments(**fields)
    teacher, compact = compress_tiny("bert", CASE)
    options = {"texts": tiny_texts(8), "tokenizer": tiny_tokenizer(), "max_length": 16}
    assert calibrate(compact, teacher=teacher, args=args, **options) is compact
    assert saved == ([(str(tmp_path / "out"),)] if named else [])
    assert (tmp_path / "out" / "model.safetensors").exists() == named


def test_no_pickle_lies_beside_the_result(tmp_path: Path) -> None:
    teacher, compact = compress_tiny("bert", CASE)
    tiny_calibrate(compact, teacher, args={"output_dir": str(tmp_path), "max_steps": 2, "save_steps": 2})
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-2"
    pickles = {".bin", ".pt", ".pth", ".pkl"}
    assert [path.name for path in tmp_path.iterdir() if path.suffix in pickles] == []
    # What goes on from a checkpoint needs the states of the optimiser and of random numbers, and no more.
    left = {path.name for path in (tmp_path / "checkpoint-2").iterdir() if path.suffix in pickles}
    assert left == {"optimizer.pt", "scheduler.pt", "rng_state.pth"}


def test_bad_input() -> None:
    teacher, compact = compress_tiny("bert", CASE)
    checks = [
        ({"compact": teacher}, "BertForMaskedLM, which is not compact"),
        ({"teacher": compact}, "`compact` itself"),
        ({"teacher": tiny_model("bert", vocab_size=90)}, "has 90 tokens, but `compact` has 120"),
        ({"teacher": tiny_model("bert", hidden_size=16)}, "hidden size 16, but `compact` has 24"),
        ({"teacher": tiny_model("bert", head="BertModel")}, "which has no output layer"),
        ({"teacher": tiny_model("bert", num_hidden_layers=1), "losses": {"all_states": 1.0}}, "has 1 layers"),
        ({"trains": "table"}, "'table', but allowed are 'tables'"),
        ({"texts": None}, "`texts` is missing"),
        ({"texts": []}, "`texts` is empty"),
        ({"texts": ["w5"]}, "The text has 1 tokens, but a piece needs 14: give more text"),
        ({"eval_texts": ["w5"]}, "The text has 1 tokens, but a piece needs 14: give more text"),
        ({"predicted_share": 0.0}, "above 0"),
        ({"max_length": 2}, "at least 3"),
        ({"args": {"no_such_field": 1}}, "no_such_field"),
        ({"args": {"push_to_hub": True}}, "`push_to_hub`.*hf_compact_embeddings.push_to_hub"),
        ({"resume_from_checkpoint": "nowhere"}, "'nowhere' is no folder"),
    ]
    for changes, message in checks:
        options = {"compact": compact, "teacher": teacher, **changes}
        with pytest.raises(hce.CompactConfigError, match=message):
            tiny_calibrate(**options)


class Poison(TrainerCallback):
    """Makes the model's values infinite after a step."""

    def __init__(self, compact: PreTrainedModel, step: int) -> None:
        self.compact, self.step = compact, step

    def on_step_end(self, args, state, control, **_):
        if state.global_step == self.step:
            with torch.no_grad():
                next(self.compact.compact_embedding.parameters()).fill_(float("nan"))


@pytest.mark.parametrize("architecture", ["bert", "llama"])
def test_a_loss_that_breaks_stops_and_keeps_the_last_good_checkpoint(architecture: str, tmp_path: Path) -> None:
    teacher, compact = compress_tiny(architecture, CASE)
    start = copy.deepcopy(compact.state_dict())
    with pytest.raises(CalibrationError, match="The loss is nan after step 3.*values again that it had before"):
        tiny_calibrate(compact, teacher, callbacks=[Poison(compact, 3)])
    assert all(torch.equal(value, start[name]) for name, value in compact.state_dict().items())
    # Broken values are not saved either.
    for poisoned, message in ((3, "after step 3"), (4, "After step 4")):
        folder = tmp_path / str(poisoned)
        args = {"output_dir": str(folder), "save_steps": 2}
        with pytest.raises(CalibrationError, match=f"{message}.*values of checkpoint-2 again"):
            tiny_calibrate(compact, teacher, callbacks=[Poison(compact, poisoned)], args=args)
        assert last_checkpoint(folder).name == "checkpoint-2"
        assert all(value.isfinite().all() for value in compact.parameters())


def test_a_checkpoint_that_was_not_finished_is_passed_over(tmp_path: Path) -> None:
    teacher, compact = compress_tiny("bert", CASE)
    tiny_calibrate(compact, teacher, args={"output_dir": str(tmp_path), "save_steps": 2})
    assert last_checkpoint(tmp_path).name == "checkpoint-6"
    (tmp_path / "checkpoint-6" / "trainer_state.json").write_text('{"epoch": ')
    (tmp_path / "checkpoint-4" / "trainer_state.json").unlink()
    assert last_checkpoint(tmp_path).name == "checkpoint-2"


def test_accumulated_batches_are_averaged() -> None:
    """Two batches of four are one of eight where every row counts alike."""
    teacher, one = compress_tiny("bert", CASE)
    other = copy.deepcopy(one)
    options = {"losses": {"logits": 1.0}, "predicted_share": 1.0, "texts": tiny_texts(64)}
    tiny_calibrate(one, teacher, args={"optim": "sgd"}, **options)
    split = {"optim": "sgd", "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    tiny_calibrate(other, teacher, args=split, **options)
    for name, value in one.compact_embedding.state_dict().items():
        torch.testing.assert_close(value, other.compact_embedding.state_dict()[name], atol=1e-5, rtol=1e-4)


def test_the_student_has_no_dropout() -> None:
    teacher, compact = compress_tiny("bert", CASE)
    inputs = tiny_inputs(teacher)
    said = []
    handle = compact.register_forward_pre_hook(lambda module, _: said.append(module.training))
    tiny_calibrate(compact, teacher)
    handle.remove()
    assert said and not any(said)
    assert run(compact, compact, inputs, None).logits is None


def test_a_finished_calibration_is_not_trained_on(tmp_path: Path) -> None:
    teacher, compact = compress_tiny("bert", CASE)
    args = {"output_dir": str(tmp_path), "max_steps": 2, "save_steps": 2, "lr_scheduler_type": "constant"}
    first = tiny_calibrate(copy.deepcopy(compact), teacher, trains="all", args=args)
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-2"
    again = tiny_calibrate(copy.deepcopy(compact), teacher, trains="all", args=args, resume_from_checkpoint=True)
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-2"
    assert_same_state(again, first)
    assert again.config.compact_source["calibration"]["steps"] == 2


@pytest.mark.parametrize("architecture", ["bert", "bart", "llama"])
def test_checkpointing_changes_no_loss(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers are checkpointed in training mode only, in which they would drop out."""
    teacher, compact = compress_tiny(architecture, CASE, head={"bart": "BartModel"}.get(architecture))
    for module in compact.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
        if isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.5
    checkpointed, native = [], modeling_utils.checkpoint
    monkeypatch.setattr(
        modeling_utils, "checkpoint", lambda *inputs, **options: checkpointed.append(1) or native(*inputs, **options)
    )
    losses = []
    for checkpointing in (False, True):
        assert not checkpointed
        seen, model = Losses(), copy.deepcopy(compact)
        args = {"gradient_checkpointing": checkpointing, "max_steps": 3}
        tiny_calibrate(model, teacher, trains="all", callbacks=[seen], args=args)
        losses.append([log["loss"] for log in seen.logs])
    assert checkpointed and losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_values_that_the_last_step_has_broken_are_given_back() -> None:
    class Breaks(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, model=None, **_):
            if state.global_step == ARGS["max_steps"] - 1:
                for parameter in model.compact_embedding.parameters():
                    parameter.grad.fill_(float("nan"))

    teacher, compact = compress_tiny("bert", CASE)
    before = copy.deepcopy(compact.state_dict())
    with pytest.raises(CalibrationError, match="After step 6 the values of .* are not finite"):
        tiny_calibrate(compact, teacher, callbacks=[Breaks()])
    assert all(torch.equal(value, before[name]) for name, value in compact.state_dict().items())


def test_a_causal_model_in_bfloat16_learns() -> None:
    teacher, compact = compress_tiny("llama", CASE)
    seen = Losses()
    calibrated = tiny_calibrate(
        compact.bfloat16(), teacher.bfloat16(), trains="tables+norms", losses={"logits": 1.0}, callbacks=[seen]
    )
    assert calibrated.dtype == torch.bfloat16 and len(seen.logs) == 6
    assert all(log["loss"] >= 0 and float(log["grad_norm"]) > 0 for log in seen.logs)


def test_half_precision_is_refused() -> None:
    teacher, compact = compress_tiny("bert", CASE)
    with pytest.raises(hce.CompactConfigError, match="is in float16, which cannot be trained: take float32"):
        tiny_calibrate(compact.half(), teacher)


@pytest.fixture
def command(tmp_path: Path) -> list[Any]:
    """Return `hf-compact`'s words that calibrate a checkpoint in half precision by two steps."""
    teacher, compact = compress_tiny("bert", CASE)
    teacher.save_pretrained(tmp_path / "teacher")
    compact.half().save_pretrained(tmp_path / "compact")
    for folder in ("teacher", "compact"):
        tiny_tokenizer().save_pretrained(tmp_path / folder)
    (tmp_path / "a.txt").write_text("\n".join(tiny_texts(40)))
    words = ["calibrate", tmp_path / "compact", "--teacher", tmp_path / "teacher", "--texts", tmp_path / "a.txt"]
    return [*words, "--output", tmp_path / "result", "--steps", 2, "--set", "use_cpu=true", "--max-length", 16]


def test_a_half_checkpoint_is_calibrated_from_the_command_line(command: list[Any], tmp_path: Path) -> None:
    assert main(list(map(str, command))) == 0
    result, start = (
        hce.CompactBertForMaskedLM.from_pretrained(tmp_path / name, dtype="auto") for name in ("result", "compact")
    )
    assert result.dtype == torch.float16
    assert not torch.equal(result.compact_embedding.dense(), start.compact_embedding.dense())


def test_the_command_line_in_two_processes(command: list[Any], tmp_path: Path) -> None:
    command += ["--work", tmp_path / "work", "--set", "save_strategy=steps", "--set", "save_steps=2"]
    run_together("-m", "hf_compact_embeddings.cli.main", *command, home=tmp_path / "home")
    assert hce.CompactBertForMaskedLM.from_pretrained(tmp_path / "result").config.compact_source["calibration"]
    assert (tmp_path / "work" / "checkpoint-2" / "rng_state_1.pth").is_file(), "a second process has trained"


def test_an_encoder_decoder_learns_states() -> None:
    teacher, compact = compress_tiny("bart", CASE)
    seen = Losses()
    tiny_calibrate(compact, teacher, callbacks=[seen])
    assert {"loss_all_states", "loss_sentence", "loss_relations"} <= set(seen.logs[0])


def test_both_tables_are_trained_and_rounded(tmp_path: Path) -> None:
    teacher = tiny_model("llama-untied")
    compact = hce.compress(teacher, CASE.method, tables="all", **CASE.options)
    before = copy.deepcopy(compact.state_dict())
    args = {"output_dir": str(tmp_path), "save_strategy": "steps", "save_steps": 3}
    tiny_calibrate(compact, teacher, trains="tables", args=args)
    moved = {name for name, tensor in compact.state_dict().items() if not torch.equal(tensor, before[name])}
    homes = tuple(f"{path}." for path in compact.compact_tables)
    assert all(name.startswith(homes) for name in moved)
    assert all(any(name.startswith(home) for name in moved) for home in homes)
    rounded = copy.deepcopy(compact)
    for table in rounded.compact_tables.values():
        table.round_to_storage()
    assert_same_state(rounded, compact)
    # A checkpoint of the training holds both as they were, unrounded.
    exact = load_file(tmp_path / "checkpoint-3" / EXACT_TABLE)
    assert all(any(name.startswith(home) for name in exact) for home in homes)
    again = type(compact).from_pretrained(tmp_path / "checkpoint-3")
    load_exact_table(again, tmp_path / "checkpoint-3")
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in exact.items())
    assert any(not torch.equal(tensor, tensor.half().float()) for tensor in exact.values())
