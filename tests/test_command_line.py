"""The command line: whatever goes wrong ends in one line on stderr and exit code 2."""

from __future__ import annotations

import json
from typing import Any

import pytest

from hf_compact_embeddings.cli import methods
from hf_compact_embeddings.cli.main import main

from .tiny_models import tiny_model


def broken(error: BaseException) -> Any:
    def run(options: Any) -> Any:
        raise error

    return run


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (KeyError("model_type"), "KeyError: 'model_type' (`--debug` shows where that came from)"),
        (RuntimeError("one\ntwo"), "RuntimeError: one two (`--debug` shows where that came from)"),
        (KeyboardInterrupt(), "interrupted"),
        (OSError(28, "No space left on device"), "[Errno 28] No space left on device"),
    ],
)
def test_what_nobody_foresaw_ends_in_one_line(
    error: BaseException, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(methods, "run", broken(error))
    assert main(["methods"]) == 2
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", f"hf-compact methods: {line}\n")
    assert main(["methods", "--debug"]) == 2
    said = capsys.readouterr()
    assert "Traceback" in said.err and said.err.endswith(f"hf-compact methods: {line}\n")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--ratio", "3", "--device", "gpu"], "`device` is 'gpu', but there is no such device here"),
        (["--method", "nope"], "`method` is 'nope', but known methods are"),
        (["--method", "rotated", "--set", "foo=1"], "method 'rotated' has no option 'foo'"),
        (["--ratio", "3", "--head", "AutoModelForSpeechSeq2Seq"], "Unrecognized configuration class"),
        (["--ratio", "3", "--texts", "missing.txt"], "`texts` 'missing.txt' is no file"),
        (["--ratio", "3", "--token-counts", "missing.json"], "missing.json"),
        (["--ratio", "3", "--layers", "int3"], "`layers` is 'int3', but known are 'int8', 'int4'"),
        (["--layers", "int8"], "is a 'bert' checkpoint, which is not compact"),
    ],
)
def test_compress_says_what_is_wrong(
    words: list[str],
    message: str,
    tmp_path: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny_model("bert").save_pretrained("dense")
    assert main(["compress", "dense", "--output", "compact", *words]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1 and said.startswith("hf-compact compress: ")
    assert not (tmp_path / "compact").exists()


def test_layers_at_once_and_afterwards(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_model("bert").save_pretrained(tmp_path / "dense")
    names = {name: str(tmp_path / name) for name in ("dense", "table", "once", "later")}
    method = ["--method", "scalar"]
    assert main(["compress", names["dense"], *method, "--output", names["table"]]) == 0
    assert main(["compress", names["dense"], *method, "--layers", "int8", "--output", names["once"]]) == 0
    capsys.readouterr()
    assert main(["compress", names["table"], "--layers", "int8", "--output", names["later"], "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    files = [file for file in (tmp_path / "later").iterdir() if file.name != "README.md"]
    assert said["folder_bytes"] == sum(file.stat().st_size for file in files)
    assert (said["layers"]["codes"], said["layers"]["count"]) == ("int8", 12)
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("once", "later", "table")]
    assert weights[0] == weights[1] and len(weights[0]) < len(weights[2])
    assert main(["inspect", names["later"]]) == 0
    text = capsys.readouterr().out
    assert "12 as int8: " in text and f"whole folder            {said['folder_bytes']:,} bytes" in text
    assert main(["compress", names["later"], "--layers", "int4", "--output", str(tmp_path / "again")]) == 2
    assert "has small layers already" in capsys.readouterr().err
