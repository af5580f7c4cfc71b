"""Type checkers and editors know every public name, and no others."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
import transformers

import hf_compact_embeddings as hce
from hf_compact_embeddings.fitting import registered_methods

from ..tools import REPOSITORY
from .make import STUB, stub

USE = """
from __future__ import annotations

from typing import assert_type

import hf_compact_embeddings as hce
from hf_compact_embeddings import CompactBertConfig, KeepCompactCard

hce.calibrate(hce.compress(object(), "subspace"), tokenizer=None, losses={"states": 1.0})
hce.training.packed_rows
error: type[Exception] = hce.CalibrationError
assert_type(hce.SubspaceConfig(num_subspaces=8), hce.SubspaceConfig)
model = hce.CompactBertForSequenceClassification.from_pretrained("x")
assert_type(model, hce.CompactBertForSequenceClassification)
model.compact_embedding.nbytes
"""
# Each line with a word of what is wrong with it.
MISUSE = {
    "hce.SubspaceConfig(nonsense=1)": "nonsense",
    "hce.nonsense": "nonsense",
    "hce.training.nonsense": "nonsense",
    "hce.CompactNonsenseModel": "CompactNonsenseModel",
    "hce.calibrate(nonsense=1)": "nonsense",
}


@pytest.mark.parametrize("name", hce.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(hce, name) is not None and name in dir(hce)


def test_the_options_of_every_method_are_public_names() -> None:
    for method in registered_methods():
        options = method.structure.options_class
        assert options.__name__ in hce.__all__, "import them in __init__.py, and add them to __all__"
        assert getattr(hce, options.__name__) is options


def test_names_of_classes_made_on_demand_are_true() -> None:
    listed = [name for name in dir(hce) if name.startswith("Compact") and name not in hce.__all__]
    # The Auto classes list some, in some releases, that are no names of Transformers.
    assert {name.removeprefix("Compact") for name in listed} <= set(dir(transformers))
    for name in listed[::100]:
        assert getattr(hce, name).__name__ == name


def test_the_stub_lists_the_classes_of_the_known_good_transformers() -> None:
    known_good = re.search(r"^transformers==(.*)$", (REPOSITORY / "constraints.txt").read_text(), re.MULTILINE)
    assert known_good is not None
    if version("transformers") != known_good[1]:
        pytest.skip(f"the stub is that of transformers {known_good[1]}, and {version('transformers')} is installed")
    assert STUB.read_text(encoding="utf-8") == stub(), "run `make stubs`"


def test_the_stub_is_part_of_the_package() -> None:
    settings = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    assert {"py.typed", "*.pyi"} <= set(settings["package-data"]["hf_compact_embeddings"])


def test_a_type_checker_knows_the_public_names_and_no_others(tmp_path: Path) -> None:
    script = tmp_path / "use.py"
    script.write_text(USE + "".join(f"{line}\n" for line in MISUSE), encoding="utf-8")
    # In the repository, where `make types` has left what mypy knows of torch.
    checked = subprocess.run(
        [sys.executable, "-m", "mypy", "--no-error-summary", script], cwd=REPOSITORY, capture_output=True, text=True
    )
    found = {}
    for line in checked.stdout.splitlines():
        if ": note: " in line:
            continue
        told = re.match(rf"{re.escape(str(script))}:(\d+): error: (.*)", line)
        assert told is not None, checked.stdout
        found[int(told[1])] = found.get(int(told[1]), "") + told[2]
    first = len(USE.splitlines()) + 1
    assert sorted(found) == list(range(first, first + len(MISUSE))), checked.stdout
    for number, word in enumerate(MISUSE.values(), first):
        assert word in found[number]
