"""The rules of benchmarks/: modules of one package, which know of ours its public names and one file of the others."""

from __future__ import annotations

import ast
import json
import re
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.calibration.experiment import read_experiments

from ..tools import PACKAGE, REPOSITORY

FOLDER = REPOSITORY / "benchmarks"
FILES = sorted(FOLDER.rglob("*.py"))
# The one file that knows where in the package things are that have no public name.
LIBRARY = FOLDER / "common" / "library.py"
RECORDS = sorted(FOLDER.glob("*/results/*.json"))
READMES = [*sorted(FOLDER.rglob("README.md")), REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]


def named(path: Path) -> str:
    return path.relative_to(FOLDER).as_posix()


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Yield how many folders up each imported module is looked for (0: anywhere), and its full name."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((0, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.level, f"{node.module or ''}.{alias.name}".strip(".")) for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=named)
def test_nothing_is_imported_by_a_scripts_name_or_from_the_command_line(path: Path) -> None:
    scripts = {file.stem for file in FILES} | {folder.name for folder in FOLDER.iterdir() if folder.is_dir()}
    for level, name in imports(path):
        first, *others = name.split(".")
        if level:
            continue
        assert first not in scripts - set(sys.stdlib_module_names), f"{named(path)} imports {name} by its bare name"
        if first == PACKAGE.name:
            assert others[:1] != ["cli"], f"{named(path)} imports {name}"
            assert path == LIBRARY or not others, f"{named(path)} imports {name}: through common/library.py"


@pytest.mark.parametrize("path", [file for file in FILES if "__main__" in file.read_text()], ids=named)
def test_each_benchmark_starts(path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    module = ".".join(["benchmarks", *path.relative_to(FOLDER).with_suffix("").parts])
    monkeypatch.setattr(sys, "argv", [str(path), "--help"])
    # Some set variables before they import torch; what is set here is undone.
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "TOKENIZERS_PARALLELISM"):
        monkeypatch.setenv(variable, "1")
    monkeypatch.delitem(sys.modules, module, raising=False)
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(module, run_name="__main__")
    assert ended.value.code == 0 and "usage:" in capsys.readouterr().out


@pytest.mark.parametrize("path", sorted(FOLDER.glob("calibration/experiments/*.json")), ids=named)
def test_each_experiment_can_be_read_and_has_a_record(path: Path) -> None:
    found = read_experiments(path)
    assert found and all(experiment.question.endswith("?") for experiment in found.values())
    assert (FOLDER / "calibration" / "results" / path.name).is_file()
    for experiment in found.values():
        assert not experiment.after or (path.parent / f"{experiment.after}.json").is_file()
        assert experiment.losses or not experiment.steps, "the package's default may change, and the record would not"


@pytest.mark.parametrize("path", RECORDS, ids=named)
def test_each_record_says_its_command_and_is_listed(path: Path) -> None:
    assert json.loads(path.read_text())["command"].split()[0] in ("python", "hf-compact")
    readme = (path.parents[1] / "README.md").read_text()
    assert f"{path.name}" in readme, f"{path.parents[1].name}/README.md does not say what {path.name} is"


@pytest.mark.parametrize("path", READMES, ids=lambda path: path.relative_to(REPOSITORY).as_posix())
def test_what_a_readme_names_exists(path: Path) -> None:
    text = path.read_text()
    for module in re.findall(r"python -m (benchmarks[\w.]*)", text):
        assert REPOSITORY.joinpath(*module.split(".")).with_suffix(".py").is_file(), module
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", text):
        assert (path.parent / target).exists(), target
