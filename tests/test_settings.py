"""Settings as people type them."""

from __future__ import annotations

import pytest

import hf_compact_embeddings as hce
from hf_compact_embeddings.cli.main import main
from hf_compact_embeddings.settings import parse_setting


@pytest.mark.parametrize(
    ("words", "setting"),
    [
        ("rank=8", ("rank", 8)),
        ("share=0.5", ("share", 0.5)),
        ("coded=false", ("coded", False)),
        ("seed=null", ("seed", None)),
        ("basis=float16", ("basis", "float16")),
        ("note=a=b", ("note", "a=b")),
        ("note=", ("note", "")),
    ],
)
def test_a_setting_is_read_as_json_or_else_as_a_string(words: str, setting: tuple) -> None:
    assert parse_setting(words, "--set") == setting


@pytest.mark.parametrize("words", ["rank", "=8", ""])
def test_what_is_no_setting_names_the_flag_it_was_behind(words: str) -> None:
    with pytest.raises(hce.CompactConfigError, match=rf"`--loss` is '{words}', but it must be NAME=VALUE"):
        parse_setting(words, "--loss")


def test_a_verb_names_its_flag(tmp_path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "texts.txt").write_text("A text.\n")
    words = ["calibrate", "nowhere", "--texts", str(tmp_path / "texts.txt"), "--output", str(tmp_path / "out")]
    assert main([*words, "--loss", "states"]) == 2
    assert "`--loss` is 'states', but it must be NAME=VALUE" in capsys.readouterr().err
