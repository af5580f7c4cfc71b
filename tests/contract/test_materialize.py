"""Rows that are decoded once answer fast where no gradient can reach the table; all that is stored stays codes."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from accelerate import cpu_offload
from torch import Tensor
from transformers import AutoModelForMaskedLM

import hf_compact_embeddings as hce
from hf_compact_embeddings.checkpoints import write_checkpoint
from hf_compact_embeddings.cli.main import main
from hf_compact_embeddings.kernels import RUNTIMES, rows
from hf_compact_embeddings.modeling.structure import CompactEmbedding, structure_class_of

from ..cases import EXTRAS, TINY_CASES, Case, build_structure, compress_tiny, for_all_with_extras, for_each_method
from ..tiny_models import tiny_inputs
from ..tools import LargestTensor, assert_same_state, last_json, outputs_of, reading_plainly, run_python

IDS = torch.tensor([[0, 3, 7, 31], [59, 59, 1, 3]])
# How far a value may be off, of itself: half of the last bit. A row of int8 has a step of its own.
ROUNDING = {"float16": 2.0**-11, "bfloat16": 2.0**-8}
every_runtime = pytest.mark.parametrize("runtime", RUNTIMES)


@pytest.fixture(params=["compiled", "plain"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run with the compiled loops, and as where numba is missing."""
    if request.param == "plain":
        monkeypatch.setattr(rows, "numba_works", lambda: False)
    elif not rows.numba_works():
        pytest.skip("numba is not installed")
    return request.param


@torch.no_grad()
def looked_up(table: CompactEmbedding, ids: Tensor = IDS) -> Tensor:
    return table(ids, scale=1.0)


@torch.no_grad()
def every_row(table: CompactEmbedding) -> Tensor:
    return looked_up(table, torch.arange(table.num_embeddings))


def materialized(case: Case, runtime: str | None = "int8", **extras: object) -> CompactEmbedding:
    return hce.materialize(build_structure(case, **extras).eval(), runtime)


def reads_decoded_rows(table: CompactEmbedding) -> bool:
    """Whether a call gives what int8 rows do, which is never what the codes give."""
    with reading_plainly():
        return not torch.equal(every_row(table), table.dense())


@every_runtime
@for_all_with_extras("project", "dense")
def test_values_are_off_by_half_a_step_at_the_most(case: Case, extras: dict, runtime: str, path: str) -> None:
    table = materialized(case, runtime, **extras)
    dense, found = table.dense(), every_row(table)
    step = dense.abs().amax(1, keepdim=True) / 127 / 2 if runtime == "int8" else dense.abs() * ROUNDING[runtime]
    # And by the last bit of the quotient, and by what float16 has below its least normal number.
    assert ((found - dense).abs() <= step * (1 + 1e-5) + 2.0**-25).all()
    # Floats may be what the codes give, bit by bit.
    assert reads_decoded_rows(table) or runtime != "int8"
    for ids in (IDS, IDS.T, IDS[0, 0], IDS[:, :0], IDS.int()):
        assert torch.equal(looked_up(table, ids), found[ids.long()])
    with torch.no_grad():
        assert torch.equal(table(IDS), found[IDS] * table.scale)
        assert torch.equal(table(IDS, scale=0.5), found[IDS] * 0.5)
        with pytest.raises(IndexError, match="has no row"):
            table(torch.tensor([table.num_embeddings]))


@every_runtime
@for_all_with_extras("project", "dense")
def test_scores_are_products_with_the_decoded_rows(case: Case, extras: dict, runtime: str, path: str) -> None:
    table = materialized(case, runtime, **extras)
    found = every_row(table).double()
    for shape in ((2, 3, 24), (1, 24), (5, 24), (24,), (0, 24), (40, 24)):
        hidden = torch.randn(shape)
        with torch.no_grad():
            scores = table(hidden, project=True)
        assert scores.shape == (*shape[:-1], table.num_embeddings) and scores.dtype == torch.float32
        bound = 4 * torch.finfo(torch.float32).eps * (hidden.double().abs() @ found.abs().T) + 1e-12
        assert ((scores - hidden.double() @ found.T).abs() <= bound).all()


@every_runtime
@pytest.mark.parametrize("count", [1, 2, 3, 31, 34, 67])
def test_compiled_loops_reach_the_last_row(count: int, runtime: str) -> None:
    if not rows.numba_works():
        pytest.skip("numba is not installed")
    values = (50 * torch.randn(count, 19)).to(RUNTIMES[runtime])
    compiled = rows.DecodedRows(values, torch.rand(count) if runtime == "int8" else torch.ones(count), compiled=True)
    plain = dataclasses.replace(compiled, compiled=False)
    ids = torch.arange(count).flip(0)
    assert torch.equal(compiled.look_up(ids, torch.float32), plain.look_up(ids, torch.float32))
    for queries in (1, 4, 7):
        hidden = torch.randn(queries, 19)
        torch.testing.assert_close(compiled.scores(hidden), plain.scores(hidden), atol=1e-3, rtol=1e-5)


@every_runtime
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@for_each_method("project", "dense")
def test_models_in_half_precision(case: Case, dtype: torch.dtype, runtime: str, path: str) -> None:
    table = materialized(case, runtime, **EXTRAS["everything"]).to(dtype)
    found = every_row(table)
    assert found.dtype == dtype
    # What is looked up was rounded to the model's type once more.
    off = found.double().abs() * torch.finfo(dtype).eps
    for count in (1, 5, 40):
        hidden = torch.randn(count, 24).to(dtype)
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            scores = table(hidden, project=True)
        assert scores.dtype == dtype
        wanted = hidden.double() @ found.double().T
        bound = hidden.double().abs() @ off.T + wanted.abs() * torch.finfo(dtype).eps + 1e-3
        assert ((scores - wanted).abs() <= bound).all()


@for_each_method("project", "dense")
def test_what_is_stored_is_codes(case: Case, tmp_path: Path) -> None:
    dense, compact = compress_tiny("bert", case)
    compact.save_pretrained(tmp_path / "before")
    state, report = copy.deepcopy(compact.state_dict()), hce.inspect(compact, against=dense).to_dict()
    native = hce.decompress(compact)
    assert hce.materialize(compact, "int8") is compact
    assert reads_decoded_rows(compact.compact_embedding)
    assert compact.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in compact.state_dict().items())
    compact.save_pretrained(tmp_path / "after")
    for file in (tmp_path / "before").iterdir():
        assert (tmp_path / "after" / file.name).read_bytes() == file.read_bytes(), file.name
    found = hce.inspect(compact, against=dense).to_dict()
    # Of all figures, only what is in memory has changed.
    for one, other in zip((found, *found["tables"]), (report, *report["tables"]), strict=True):
        assert one.pop("memory_bytes") > other.pop("memory_bytes")
    assert found == report
    assert_same_state(hce.decompress(compact), native)
    loaded = type(compact).from_pretrained(tmp_path / "after").eval()
    assert not reads_decoded_rows(loaded.compact_embedding), "nothing is decoded that nobody asked for"
    hce.materialize(compact, None)
    assert type(compact.compact_embedding) is type(loaded.compact_embedding)
    assert not reads_decoded_rows(compact.compact_embedding)


@for_each_method("project", "dense")
def test_training_reads_codes_and_makes_rows_stale(case: Case) -> None:
    _, compact = compress_tiny("bert", case)
    hce.materialize(compact, "int8")
    table, inputs = compact.compact_embedding, tiny_inputs(compact)
    for mode in (True, False):
        compact.train(mode).zero_grad()
        compact(**inputs).logits.square().mean().backward()
        trained = [parameter for parameter in table.parameters() if parameter.requires_grad]
        assert trained and all(parameter.grad is not None for parameter in trained), f"training={mode}"
    compact.train()
    old = table.dense().detach()
    torch.optim.SGD(trained, lr=10.0).step()
    assert not torch.equal(table.dense(), old)
    assert not reads_decoded_rows(table), "while training"
    compact.eval()
    assert reads_decoded_rows(table)
    step = table.dense().abs().amax(1, keepdim=True) / 127 / 2
    assert ((every_row(table) - table.dense()).abs() <= step * (1 + 1e-5) + 1e-9).all()
    # A table that is not trained reads decoded rows, also where what comes after it is.
    table.requires_grad_(False)
    compact.train()
    assert reads_decoded_rows(table)
    hidden = torch.randn(2, 24, requires_grad=True)
    table(hidden, project=True).sum().backward()
    assert hidden.grad.abs().sum() > 0


@every_runtime
@for_each_method("project", "dense", "resize")
def test_rows_follow_the_table(case: Case, runtime: str) -> None:
    table = materialized(case, runtime, **EXTRAS["everything"])

    def follows(changed: CompactEmbedding) -> None:
        fresh = hce.materialize(hce.materialize(copy.deepcopy(changed), None), runtime)
        assert torch.equal(every_row(changed), every_row(fresh))
        assert len(every_row(changed)) == changed.num_embeddings
        assert reads_decoded_rows(changed) or runtime != "int8"

    with torch.no_grad():
        next(parameter for parameter in table.parameters() if parameter.dim()).mul_(2.0)
    follows(table)
    follows(table.resized(70))
    follows(table.resized(50))
    state = {name: value * 3 if value.is_floating_point() else value for name, value in table.state_dict().items()}
    table.load_state_dict(state)
    follows(table)
    # What moving does, on a machine with one device.
    follows(table._apply(torch.clone))
    follows(table.double())
    follows(table.float())
    for copied in (copy.deepcopy(table), pickle.loads(pickle.dumps(table))):
        follows(copied)
        assert type(copied) is type(table)
        with torch.no_grad():
            next(parameter for parameter in copied.parameters() if parameter.dim()).mul_(2.0)
        follows(copied)
    follows(table)


@for_each_method("project", "dense")
def test_tokens_may_be_added_to_a_model(case: Case) -> None:
    _, compact = compress_tiny("llama", case)
    hce.materialize(compact, "int8").resize_token_embeddings(130)
    assert outputs_of(compact)[0].shape[-1] == 130
    assert reads_decoded_rows(compact.compact_embedding)


@for_each_method("project", "dense")
@pytest.mark.parametrize("architecture", ["bert", "llama", "t5", "gemma3_text"])
def test_whole_models_read_decoded_rows(architecture: str, case: Case) -> None:
    _, compact = compress_tiny(architecture, case)
    rounded, before = hce.materialize(copy.deepcopy(compact), "int8"), outputs_of(compact)
    for left, right in zip(outputs_of(rounded), before, strict=True):
        assert not torch.equal(left, right)
        torch.testing.assert_close(left, right, atol=0.1, rtol=0.1)
    for left, right in zip(outputs_of(hce.materialize(rounded, None)), before, strict=True):
        assert torch.equal(left, right)


@for_each_method("project", "dense")
def test_look_up_and_scores_are_one_graph_each(case: Case, path: str) -> None:
    table = materialized(case, "int8", **EXTRAS["everything"])
    hidden = torch.randn(3, 24)
    torch._dynamo.reset()
    compiled = torch.compile(table, backend="eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(IDS), table(IDS))
        torch.testing.assert_close(compiled(hidden, project=True), table(hidden, project=True))
        table.train()
        next(parameter for parameter in table.parameters() if parameter.dim()).mul_(2.0)
        table.eval()
        torch.testing.assert_close(compiled(IDS), table(IDS))


def test_threads_share_the_rows() -> None:
    table = hce.materialize(build_structure(Case("scalar", "int8", {}), rows=3_000, width=512).eval(), "int8")
    hidden, before = torch.randn(8, 512), torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with torch.no_grad():
            wanted = table(hidden, project=True)
            # Threads that find the rows stale decode them at the same time.
            next(table.parameters()).mul_(2.0)

        def score(_: int) -> Tensor:
            with torch.no_grad():
                return table(hidden, project=True)

        with ThreadPoolExecutor(8) as pool:
            for scores in pool.map(score, range(32)):
                torch.testing.assert_close(scores, 2 * wanted)
    finally:
        torch.set_num_threads(before)


@for_each_method("project", "dense")
def test_offloaded_tables_are_right(case: Case) -> None:
    _, compact = compress_tiny("llama", case)
    before = outputs_of(compact)
    hce.materialize(compact, "int8")
    offloaded = cpu_offload(compact, execution_device=torch.device("cpu"), offload_buffers=True)
    for left, right in zip(outputs_of(offloaded), before, strict=True):
        torch.testing.assert_close(left, right, atol=1e-5, rtol=1e-5)
    hce.materialize(offloaded, None)
    for left, right in zip(outputs_of(offloaded), before, strict=True):
        torch.testing.assert_close(left, right, atol=1e-5, rtol=1e-5)


@for_each_method("project", "dense")
def test_decoding_never_has_the_table_in_float32(case: Case) -> None:
    rows, width, options = 60_000, 96, case.config(init="random")
    structure_class = structure_class_of(case.method)
    table = structure_class(options, structure_class.random_layout(options, rows, width), rows, width).eval()
    table.reset_parameters()
    with LargestTensor() as decoding:
        hce.materialize(table, "int8")
    assert rows * width <= decoding.bytes <= rows * width * 4 / 2
    assert table.decoded_bytes == rows * width + rows * 4


REMOTE = """
import json, sys
import torch
from transformers import AutoModel
model = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True).eval()
import hf_compact_embeddings as hce
table, ids = model.get_input_embeddings(), torch.arange(9)
with torch.no_grad():
    before = table(ids)
    hce.materialize(model, "int8")
    off = float((table(ids) - before).abs().max())
    hce.materialize(model, None)
    again = torch.equal(table(ids), before)
print(json.dumps({"module": type(table).__module__, "off": off, "again": again}))
"""


def test_checkpoints_that_bring_their_own_code(tmp_path: Path) -> None:
    _, compact = compress_tiny("bert", Case("scalar", "int4", {"bits": 4, "group_size": 8}))
    compact.save_pretrained(tmp_path / "model")
    found = last_json(run_python(REMOTE, tmp_path / "model", home=tmp_path / "home"))
    assert found["module"].startswith("transformers_modules")
    assert 0 < found["off"] < 0.1 and found["again"]


def test_what_cannot_be_done_is_told_and_changes_nothing() -> None:
    table = build_structure(Case("scalar", "int8", {}))
    with pytest.raises(hce.CompactConfigError, match="is 'int4', but known are 'int8', 'float16', 'bfloat16' and"):
        hce.materialize(table, "int4")
    with pytest.raises(hce.CompactConfigError, match="`model` is a Linear without a compact table"):
        hce.materialize(torch.nn.Linear(2, 2))
    words = hce.CompactBertModel(
        hce.CompactBertConfig(
            hidden_size=24,
            num_hidden_layers=1,
            num_attention_heads=1,
            intermediate_size=8,
            compact_embeddings=hce.HashConfig(init="random"),
        )
    )
    kind = type(words.get_input_embeddings())
    with pytest.raises(hce.CompactEmbeddingsError, match="no dense table"):
        hce.materialize(words)
    assert type(words.get_input_embeddings()) is kind


@for_each_method("project", "dense")
def test_a_model_can_be_loaded_so(case: Case, tmp_path: Path) -> None:
    _, compact = compress_tiny("bert", case)
    compact.save_pretrained(tmp_path)
    wanted = hce.materialize(type(compact).from_pretrained(tmp_path), "int8")
    for load in (type(compact).from_pretrained, AutoModelForMaskedLM.from_pretrained):
        model = load(tmp_path, compact_runtime="int8")
        assert model.compact_embedding.decoded_bytes == wanted.compact_embedding.decoded_bytes > 0
        assert torch.equal(every_row(model.compact_embedding), every_row(wanted.compact_embedding))
        assert_same_state(model, wanted)
    model, info = type(compact).from_pretrained(tmp_path, compact_runtime="float16", output_loading_info=True)
    assert model.compact_embedding.decoded_bytes and not info["missing_keys"]
    assert not hasattr(type(compact).from_pretrained(tmp_path, compact_runtime=None).compact_embedding, "decoded_bytes")
    with pytest.raises(hce.CompactConfigError, match="`compact_runtime` is 'int4'"):
        type(compact).from_pretrained(tmp_path, compact_runtime="int4")


def test_the_shell_tells_what_decoded_rows_take(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    _, compact = compress_tiny("bert", TINY_CASES["scalar"][0])
    write_checkpoint(compact, tmp_path / "compact")
    sizes = []
    for runtime in ([], ["--runtime", "int8"]):
        assert main(["inspect", str(tmp_path / "compact"), "--json", *runtime]) == 0
        sizes.append(last_json(capsys.readouterr().out)["memory_bytes"])
    # A byte a value, and a scale a row.
    assert sizes[1] - sizes[0] == 120 * (24 + 4)
