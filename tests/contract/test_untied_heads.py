"""An output head that is not tied is a second compact table, or the only one."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn
from transformers import PreTrainedModel, Trainer, TrainingArguments

import hf_compact_embeddings as hce
from hf_compact_embeddings.modeling.errors import CheckpointError, CompactConfigError, UnsupportedArchitectureError
from hf_compact_embeddings.modeling.modeling_compact import model_class
from hf_compact_embeddings.modeling.tied import CompactHead

from ..cases import TINY_CASES, Case, for_each_method
from ..tiny_models import VOCABULARY, tiny_inputs, tiny_model
from ..tools import assert_same_outputs, assert_same_state, last_json, outputs_of, run_python, tiny_tokenizer

# The paths of the input table and of the head.
PATHS = {
    "llama-untied": ("model.embed_tokens", "lm_head"),
    "bert": ("bert.embeddings.word_embeddings", "cls.predictions.decoder"),
    "t5": ("shared", "lm_head"),
}
SCALAR = TINY_CASES["scalar"][0]
_MADE: dict[tuple[str, str, str], PreTrainedModel] = {}

for_architectures = pytest.mark.parametrize("architecture", PATHS)
for_tables = pytest.mark.parametrize("tables", ["head", "all"])


def untied(architecture: str) -> PreTrainedModel:
    """Return a tiny model whose head is another table; the configuration of T5 claims a tie all the same."""
    model = tiny_model(architecture, tie_word_embeddings=False)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    table = state[f"{PATHS[architecture][1]}.weight"]
    state[f"{PATHS[architecture][1]}.weight"] = torch.randn(table.shape, generator=torch.Generator().manual_seed(1)) / 2
    return type(model).from_pretrained(None, config=model.config, state_dict=state).eval()


def compressed(architecture: str, case: Case, tables: str) -> tuple[PreTrainedModel, PreTrainedModel]:
    key = (architecture, str(case), tables)
    model = untied(architecture)
    if key not in _MADE:
        _MADE[key] = hce.compress(model, case.method, tables=tables, **case.options)
    return model, copy.deepcopy(_MADE[key])


def homes(architecture: str, tables: str) -> list[str]:
    """Return where the structures are."""
    table, head = PATHS[architecture]
    return [f"{head}.table"] if tables == "head" else [table, f"{head}.table"]


@for_each_method("project", "dense")
@for_tables
@for_architectures
def test_both_are_compact_and_come_back(architecture: str, tables: str, case: Case, tmp_path: Path) -> None:
    dense, compact = compressed(architecture, case, tables)
    head = compact.get_output_embeddings()
    assert list(compact.compact_tables) == homes(architecture, tables)
    assert isinstance(head, CompactHead) and (head.bias is not None) == (architecture == "bert")
    # Of all dense tables (V, D), that of the input may be left.
    floats = [tensor for tensor in compact.state_dict().values() if tensor.is_floating_point()]
    left = {id(tensor) for tensor in floats if tensor.shape == dense.get_input_embeddings().weight.shape}
    assert bool(left) == (tables == "head")
    native = hce.decompress(compact)
    assert type(native) is type(dense)
    assert_same_outputs(compact, native, 1e-5)
    assert torch.equal(native.get_output_embeddings().weight, head.table.dense())
    if tables == "head":
        assert torch.equal(native.get_input_embeddings().weight, dense.get_input_embeddings().weight)
        assert compact.compact_embedding is head.table
    compact.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())["compact_embeddings"]
    assert set(stored) == set(homes(architecture, tables))
    loaded, info = type(compact).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert_same_state(loaded, compact)
    assert_same_outputs(loaded, compact)


@for_architectures
def test_the_head_is_close_to_its_own_table(architecture: str) -> None:
    dense, compact = compressed(architecture, SCALAR, "all")
    for mine, theirs in (
        (compact.get_input_embeddings().dense(), dense.get_input_embeddings().weight),
        (compact.get_output_embeddings().table.dense(), dense.get_output_embeddings().weight),
    ):
        assert float((mine - theirs).detach().square().mean() / theirs.detach().square().mean()) < 1e-3
    assert_same_outputs(compact, dense, 0.5)


@for_architectures
def test_a_dense_head_stays_its_own(architecture: str, tmp_path: Path) -> None:
    """Where the configuration claims a tie that there is not, the head must not get the input table."""
    dense, compact = compressed(architecture, SCALAR, "input")
    assert type(compact.get_output_embeddings()) is nn.Linear
    assert torch.equal(compact.get_output_embeddings().weight, dense.get_output_embeddings().weight)
    compact.tie_weights()
    assert_same_outputs(compact, dense, 0.5)
    assert_same_outputs(compact, hce.decompress(compact), 1e-5)
    compact.save_pretrained(tmp_path)
    assert_same_outputs(type(compact).from_pretrained(tmp_path), compact)


@for_tables
@for_architectures
def test_tying_again_ties_nothing(architecture: str, tables: str) -> None:
    dense, compact = compressed(architecture, SCALAR, tables)
    before = copy.deepcopy(compact)
    compact.tie_weights()
    assert_same_state(compact, before)
    assert_same_outputs(compact, before)
    with torch.no_grad():
        for parameter in compact.get_output_embeddings().parameters():
            parameter.add_(1.0)
    inputs = tiny_inputs(compact)["input_ids"]
    assert torch.equal(compact.get_input_embeddings()(inputs), before.get_input_embeddings()(inputs))


@for_tables
@pytest.mark.parametrize("architecture", ["llama-untied", "bert"])
def test_a_base_model_leaves_the_head_out(architecture: str, tables: str, tmp_path: Path) -> None:
    _, compact = compressed(architecture, SCALAR, tables)
    compact.save_pretrained(tmp_path / "head")
    base, info = transformers.AutoModel.from_pretrained(tmp_path / "head", output_loading_info=True)
    assert not [key for key in info["unexpected_keys"] if "table" in key]
    assert len(base.compact_tables) == (tables == "all")
    body = getattr(compact, compact.base_model_prefix)
    assert_same_state(base.get_input_embeddings(), body.get_input_embeddings())
    # And back: the head, which the base model did not keep, starts anew, as it does in native models.
    base.save_pretrained(tmp_path / "base")
    assert_same_outputs(transformers.AutoModel.from_pretrained(tmp_path / "base"), base)
    again = type(compact).from_pretrained(tmp_path / "base")
    assert type(again.get_output_embeddings()) is nn.Linear
    # A head that classifies has no use for it either.
    other = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "head")
    assert len(other.compact_tables) == (tables == "all")
    outputs_of(other)


@for_each_method("project", "dense", "resize")
@for_tables
@pytest.mark.parametrize("architecture", ["llama-untied", "t5"])
@pytest.mark.parametrize("rows", [100, 131])
def test_both_are_resized(architecture: str, tables: str, rows: int, case: Case, tmp_path: Path) -> None:
    _, compact = compressed(architecture, case, tables)
    ids = torch.tensor([[5, 17, 89, 42]])
    inputs = {"input_ids": ids} | ({"decoder_input_ids": ids} if architecture == "t5" else {})
    before = compact(**inputs).logits
    compact.resize_token_embeddings(rows)
    after, kept = compact(**inputs).logits, min(rows, VOCABULARY)
    assert after.shape[-1] == rows and compact.get_output_embeddings().out_features == rows
    torch.testing.assert_close(after[..., :kept], before[..., :kept], atol=1e-5, rtol=1e-5)
    if rows > VOCABULARY:
        added = compact.get_output_embeddings().table.dense()[VOCABULARY:]
        assert added.isfinite().all() and len(added) == rows - VOCABULARY
    buffers = {f"{path}.{name}" for path, table in compact.compact_tables.items() for name, _ in table.named_buffers()}
    assert set(compact._ddp_params_and_buffers_to_ignore) == buffers
    compact.save_pretrained(tmp_path)
    loaded = type(compact).from_pretrained(tmp_path)
    assert_same_state(loaded, compact)
    assert torch.equal(loaded(**inputs).logits, after)
    assert hce.decompress(compact).get_output_embeddings().weight.shape[0] == rows


def test_a_bias_grows_with_its_head() -> None:
    _, compact = compressed("bert", SCALAR, "all")
    bias = compact.get_output_embeddings().bias.detach().clone()
    compact.resize_token_embeddings(VOCABULARY + 3)
    grown = compact.get_output_embeddings().bias
    assert torch.equal(grown[:VOCABULARY], bias) and grown.shape == (VOCABULARY + 3,)


@for_each_method("project", "dense")
@for_tables
@pytest.mark.parametrize("architecture", ["llama-untied", "t5"])
def test_generated_texts_are_the_same_after_loading(architecture: str, tables: str, case: Case, tmp_path: Path) -> None:
    _, compact = compressed(architecture, case, tables)
    options: dict[str, Any] = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "no_repeat_ngram_size": 1}
    prompts = torch.tensor([[1, 17, 89, 42], [1, 8, 60, 71]])
    written = compact.generate(input_ids=prompts, **options)
    compact.save_pretrained(tmp_path)
    for other in (type(compact).from_pretrained(tmp_path), hce.decompress(compact)):
        assert torch.equal(other.generate(input_ids=prompts, **options), written)
    assert len(written[:, -6:].unique()) > 1, "a text of one token says nothing"


@for_tables
def test_a_step_of_trainer_moves_each_table_by_itself(tables: str, tmp_path: Path) -> None:
    _, compact = compressed("llama-untied", SCALAR, tables)
    before = {path: table.dense() for path, table in compact.compact_tables.items()}
    rows = [{"input_ids": list(range(3 + row, 13 + row)), "labels": list(range(3 + row, 13 + row))} for row in range(4)]
    arguments = TrainingArguments(
        str(tmp_path), max_steps=1, learning_rate=0.01, use_cpu=True, report_to="none", disable_tqdm=True
    )
    Trainer(compact, arguments, train_dataset=rows).train()
    for path, table in compact.compact_tables.items():
        assert not torch.equal(table.dense(), before[path]), path


@for_each_method("project")
def test_gradients_reach_each_table(case: Case) -> None:
    _, compact = compressed("llama-untied", case, "all")
    outputs = compact(**tiny_inputs(compact))
    (outputs.logits * torch.randn_like(outputs.logits)).sum().backward()
    for path, table in compact.compact_tables.items():
        for name, parameter in table.named_parameters():
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, f"{path}.{name}"


LOAD = """
import json, sys, copy, torch, transformers
from pathlib import Path
torch.set_num_threads(1)
transformers.utils.logging.set_verbosity_error()
found = {}
for folder in sorted(Path(sys.argv[1]).iterdir()):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    with torch.no_grad():
        logits = copy.deepcopy(model)(input_ids=torch.tensor([[5, 17, 89, 42]])).logits
    base = transformers.AutoModel.from_pretrained(folder, trust_remote_code=True)
    found[folder.name] = [list(model.compact_tables), logits.tolist(), list(base.compact_tables)]
print(json.dumps(found))
"""


def test_a_process_without_the_package_loads_them(tmp_path: Path) -> None:
    wanted = {}
    for tables in ("head", "all"):
        _, compact = compressed("llama-untied", SCALAR, tables)
        compact.save_pretrained(tmp_path / "models" / tables)
        loaded = type(compact).from_pretrained(tmp_path / "models" / tables)
        logits = copy.deepcopy(loaded)(input_ids=torch.tensor([[5, 17, 89, 42]])).logits
        base = ["embed_tokens"] if tables == "all" else []
        wanted[tables] = [homes("llama-untied", tables), logits.tolist(), base]
    output = run_python(LOAD, tmp_path / "models", home=tmp_path / "home", without_package=True)
    assert last_json(output) == wanted


@for_each_method("project", "dense")
@pytest.mark.parametrize("names", [["head"], ["input", "head"]], ids=str)
def test_models_from_scratch(names: list[str], case: Case) -> None:
    fields = tiny_model("llama-untied").config.to_diff_dict() | {"model_type": None}
    options = case.config(init="random") if "init" in case.config().to_json() else case.config()
    config = hce.CompactLlamaConfig(**fields, compact_embeddings=dict.fromkeys(names, options))
    torch.manual_seed(0)
    model = hce.CompactLlamaForCausalLM(config).eval()
    assert list(model.compact_tables) == homes("llama-untied", "all")[-len(names) :]
    for table in model.compact_tables.values():
        assert table.dense().isfinite().all() and table.dense().std() > 0
    assert_same_outputs(model, hce.decompress(model), 1e-5)


@pytest.mark.parametrize("names", [["head"], ["input", "head"]], ids=str)
def test_a_table_of_its_own_unties(names: list[str], tmp_path: Path) -> None:
    fields = tiny_model("llama").config.to_diff_dict() | {"model_type": None, "tie_word_embeddings": True}
    tables = dict.fromkeys(names, hce.SubspaceConfig(num_subspaces=4, codebook_size=16, init="random"))
    model = hce.CompactLlamaForCausalLM(hce.CompactLlamaConfig(**fields, compact_embeddings=tables)).eval()
    assert list(model.compact_tables) == homes("llama-untied", "all")[-len(names) :]
    model.tie_weights()
    model.save_pretrained(tmp_path)
    assert_same_outputs(type(model).from_pretrained(tmp_path), model)
    assert_same_outputs(hce.decompress(model), model, 1e-5)


def test_a_bias_starts_at_zero() -> None:
    fields = tiny_model("bert").config.to_diff_dict() | {"model_type": None, "tie_word_embeddings": False}
    random = hce.SubspaceConfig(num_subspaces=4, codebook_size=16, init="random")
    model = hce.CompactBertForMaskedLM(hce.CompactBertConfig(**fields, compact_embeddings={"head": random}))
    assert torch.equal(model.get_output_embeddings().bias, torch.zeros(VOCABULARY))


@pytest.mark.parametrize("given", [{"ratio": 3.0}, {"bits_per_weight": 6.0}, {"max_bytes": "5KB"}], ids=str)
@pytest.mark.parametrize("method", [None, "rotated"])
def test_budgets_hold(given: dict[str, Any], method: str | None) -> None:
    dense = untied("llama-untied")
    compact = hce.compress(dense, method, tables="all", **given)
    sizes = [table.nbytes for table in compact.compact_tables.values()]
    values = VOCABULARY * 24
    if "max_bytes" in given:
        assert sum(sizes) <= 5000 and max(sizes) <= 2500
    else:
        each = values * 4 / 3 if "ratio" in given else values * 6 / 8
        assert max(sizes) <= each
    plans = hce.plan(dense, tables="all", **given)
    assert [plan.table for plan in plans] == sorted((plan.table for plan in plans), key=["input", "head"].index)
    assert {plan.table for plan in plans} == {"input", "head"}
    assert all(plan.head_cost is not None for plan in plans if plan.table == "head")


def test_special_tokens_are_exact_in_both() -> None:
    tokenizer, dense = tiny_tokenizer(), untied("llama-untied")
    compact = hce.compress(dense, "scalar", tables="all", tokenizer=tokenizer)
    special = torch.tensor(sorted(tokenizer.all_special_ids))
    for table, native in (
        (compact.get_input_embeddings(), dense.get_input_embeddings()),
        (compact.get_output_embeddings().table, dense.get_output_embeddings()),
    ):
        assert torch.equal(table.dense()[special], native.weight[special].half().float())


def test_a_tied_head_has_no_table_of_its_own() -> None:
    for architecture in ("llama", "t5", "bert"):
        dense = tiny_model(architecture)
        with pytest.raises(CompactConfigError, match="has one table, which its output head `.*` shares"):
            hce.compress(dense, "scalar", tables="head")
        both, alone = (hce.compress(dense, "scalar", tables=tables) for tables in ("all", "input"))
        assert_same_state(both, alone)


def test_a_model_without_a_head() -> None:
    dense = tiny_model("bert", "BertModel")
    with pytest.raises(UnsupportedArchitectureError, match="no output head: looked for an nn.Linear that"):
        hce.compress(dense, "scalar", tables="head")
    assert list(hce.compress(dense, "scalar", tables="all").compact_tables) == ["embeddings.word_embeddings"]


@pytest.mark.parametrize("wrong", ["both", None, 3])
def test_other_words_are_refused(wrong: Any) -> None:
    for call in (hce.compress, hce.plan):
        with pytest.raises(CompactConfigError, match="`tables` is .*it must be 'input', 'head', 'all'"):
            call(untied("llama-untied"), tables=wrong, ratio=4)


def test_heads_that_are_no_linear_layer_or_have_other_rows() -> None:
    dense = untied("llama-untied")
    dense.lm_head = nn.Linear(24, VOCABULARY + 1, bias=False)
    for tables in ("head", "all"):
        with pytest.raises(UnsupportedArchitectureError, match="a Linear with 121 rows: looked for"):
            hce.compress(dense, "scalar", tables=tables)
    apart = tiny_model("marian", share_encoder_decoder_embeddings=False, decoder_vocab_size=VOCABULARY)
    with pytest.raises(UnsupportedArchitectureError, match="is tied to model.decoder.embed_tokens.weight"):
        hce.compress(apart, "scalar", tables="all")


def test_a_checkpoint_without_its_head_is_refused(tmp_path: Path) -> None:
    _, compact = compressed("llama-untied", SCALAR, "head")
    state = {key: value for key, value in compact.state_dict().items() if not key.startswith("lm_head.")}
    compact.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(CheckpointError, match="The checkpoint lacks lm_head.table."):
        type(compact).from_pretrained(tmp_path)
    base = model_class(transformers.LlamaModel).from_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="has no compact table"):
        hce.inspect(base)
