"""Runs that are killed, interrupted, or find no room: what is there afterwards is the old or the new, and whole.

`make kills` kills more of them, and others too.
"""

from __future__ import annotations

import errno
import os
import random
import signal
import sys
from pathlib import Path

import pytest
import torch

from hf_compact_embeddings.checkpoints import load_compact, write_checkpoint
from hf_compact_embeddings.cli.main import main
from hf_compact_embeddings.drafts import draft_folder

from ..cases import compress_tiny, first_cases
from ..tools import assert_same_state
from .kills import NEW, NOTHING, OLD, Scene, kill

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="forks")


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    return Scene(tmp_path_factory.mktemp("kills"))


@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGINT], ids=lambda by: by.name)
@pytest.mark.parametrize(("name", "count"), [("write", 8), ("save over", 8), ("compress", 3)])
def test_what_a_killed_run_leaves_is_whole(scene: Scene, name: str, count: int, by: int) -> None:
    draw = random.Random(f"{name} {by}")
    seconds = scene.seconds(scene.verbs[name])
    found = [kill(scene, name, seconds, draw, by) for _ in range(count)]
    allowed = {OLD, NEW} if scene.verbs[name].over else {NOTHING, NEW}
    assert {state for state, _ in found} <= allowed
    assert any(was_running for _, was_running in found), "none of them was killed in time"


def test_a_draft_of_a_process_that_runs_is_left_alone(tmp_path: Path) -> None:
    with draft_folder(tmp_path, "out") as mine:
        with draft_folder(tmp_path, "out") as other:
            assert mine.is_dir() and other != mine
        assert mine.is_dir() and not other.exists()
    assert not any(tmp_path.iterdir())


def test_a_draft_of_a_process_that_is_gone_is_removed(tmp_path: Path) -> None:
    process = os.fork()
    if not process:
        with draft_folder(tmp_path, "out[1]") as draft:
            (draft / "weights").write_bytes(bytes(100))
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(process, 0)
    assert len(list(tmp_path.iterdir())) == 1
    with draft_folder(tmp_path, "out") as other:
        assert len(list(tmp_path.iterdir())) == 2, "that of another name stays"
    with draft_folder(tmp_path, "out[1]") as other:
        assert list(tmp_path.iterdir()) == [other]


@pytest.fixture
def no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that fills while weights are written, after everything else has found its place."""

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("transformers.modeling_utils.safe_save_file", full)


@pytest.mark.usefixtures("no_room")
def test_a_full_disk_leaves_the_old_checkpoint(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    case = first_cases()[0]
    _, compact = compress_tiny("bert", case)
    with pytest.MonkeyPatch.context() as room:
        from safetensors.torch import save_file

        room.setattr("transformers.modeling_utils.safe_save_file", save_file)
        compact.save_pretrained(tmp_path / "old")
    files = {file.name: file.read_bytes() for file in (tmp_path / "old").iterdir()}
    with pytest.raises(OSError, match="No space left"):
        compact.save_pretrained(tmp_path / "old")
    with pytest.raises(OSError, match="No space left"):
        write_checkpoint(compact, tmp_path / "new")
    assert {file.name: file.read_bytes() for file in (tmp_path / "old").iterdir()} == files
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
    assert_same_state(load_compact(tmp_path / "old"), compact)


def test_a_parent_that_vanishes_is_one_error(tmp_path: Path) -> None:
    _, compact = compress_tiny("bert", first_cases()[0])
    parent = tmp_path / "parent"
    with pytest.raises(OSError):
        write_checkpoint(compact, parent / "out", complete=lambda draft: os.rename(parent, tmp_path / "moved"))
    assert not (parent / "out").exists() and not (tmp_path / "moved" / "out").exists()


def test_a_save_that_ends_between_two_files_is_the_old_or_the_new(tmp_path: Path, monkeypatch) -> None:
    case = first_cases()[0]
    old, new = (compress_tiny("bert", case, seed=seed)[1] for seed in (0, 1))
    files, move = 0, os.replace

    def broken(source: object, target: object) -> None:
        nonlocal files
        files -= 1
        if files < 0:
            raise KeyboardInterrupt
        move(source, target)

    monkeypatch.setattr(os, "replace", broken)
    for count in range(20):
        files = 1000
        old.save_pretrained(tmp_path / str(count))
        files = count
        try:
            new.save_pretrained(tmp_path / str(count))
        except KeyboardInterrupt:
            found = load_compact(tmp_path / str(count)).state_dict()
            assert any(
                all(torch.equal(found[name], value) for name, value in m.state_dict().items()) for m in (old, new)
            )
        else:
            assert count > 5
            break


def test_a_folder_that_nobody_may_write_to_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dense, _ = compress_tiny("bert", first_cases()[0])
    dense.save_pretrained(tmp_path / "dense")
    (tmp_path / "parent").mkdir(mode=0o500)
    # Root may write anywhere but there.
    parent = tmp_path / "parent" if os.getuid() else Path("/proc")
    options = ["--ratio", "4", "--effort", "fast", "--head", "AutoModelForMaskedLM", "--output", str(parent / "out")]
    assert main(["compress", str(tmp_path / "dense"), *options]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
