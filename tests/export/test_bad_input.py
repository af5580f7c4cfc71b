"""What cannot be exported is refused with what is wrong, and leaves nothing behind."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

import hf_compact_embeddings as hce
from hf_compact_embeddings.checkpoints import write_checkpoint
from hf_compact_embeddings.cli.main import main
from hf_compact_embeddings.export import exporting

from ..cases import TINY_CASES, compress_tiny
from ..tiny_models import tiny_config, tiny_model

ROTATED = TINY_CASES["rotated"][0]


@pytest.fixture
def compact() -> object:
    return compress_tiny("bert", ROTATED, "BertModel")[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"opset": 16}, "`opset` is 16, but 18 to 21 have"),
        ({"opset": 22}, "`opset` is 22"),
        ({"layers": "int4"}, "`layers` is 'int4'"),
        ({"pooling": "max"}, "`pooling` is 'max'.*'mean', 'cls', 'none'"),
    ],
)
def test_options_that_there_are_not(options: dict, message: str, compact: object, tmp_path: Path) -> None:
    with pytest.raises(hce.CompactConfigError, match=message):
        hce.export_onnx(compact, tmp_path / "out", **options)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_named_with_its_extra(
    compact: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(hce.CompactConfigError, match=r"onnxscript, which the extra `onnx` brings"):
        hce.export_onnx(compact, tmp_path / "out")


def test_a_model_that_is_not_compact(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(hce.CompactConfigError, match="BertForMaskedLM, which is not compact"):
        hce.export_onnx(tiny_model("bert"), tmp_path / "out")
    tiny_model("bert").save_pretrained(tmp_path / "dense")
    for format in ("onnx", "dense"):
        given = ["export", str(tmp_path / "dense"), "--format", format, "--output", str(tmp_path / "out")]
        assert main(given) == 2
        assert "which is not compact" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_models_that_a_graph_cannot_hold(tmp_path: Path) -> None:
    _, seq2seq = compress_tiny("t5", ROTATED)
    with pytest.raises(hce.UnsupportedArchitectureError, match="reads two sequences"):
        hce.export_onnx(seq2seq, tmp_path / "out")
    _, masked = compress_tiny("bert", ROTATED)
    with pytest.raises(hce.CompactConfigError, match="gives scores: only states are pooled"):
        hce.export_onnx(masked, tmp_path / "out", pooling="mean")
    config = hce.CompactBertConfig(
        **{**tiny_config("bert").to_diff_dict(), "pad_token_id": 0},
        compact_embeddings=hce.HashConfig(source="text", special_rows=5),
    )
    with pytest.raises(hce.CompactConfigError, match="reads hashes of words cannot be exported"):
        hce.export_onnx(hce.CompactBertModel(config), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_in_use(compact: object, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(hce.CompactConfigError, match="not an empty folder"):
        hce.export_onnx(compact, tmp_path)
    checkpoint = write_checkpoint(compact, tmp_path / "compact")
    assert main(["export", str(checkpoint), "--format", "dense", "--output", str(tmp_path)]) == 2
    assert main(["export", str(checkpoint), "--format", "dense", "--opset", "19", "--output", str(tmp_path / "o")]) == 2
    assert "`--opset` is for `--format onnx`" in capsys.readouterr().err


def test_a_graph_that_gives_something_else_is_not_written(
    compact: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_float32 = exporting.in_float32

    def changed(model: object) -> object:
        copy = in_float32(model)
        with torch.no_grad():
            copy.get_input_embeddings().gains.mul_(1.1)
        return copy

    monkeypatch.setattr(exporting, "in_float32", changed)
    with pytest.raises(hce.ExportError, match="differ from the model's by"):
        hce.export_onnx(compact, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
