"""Runs that are killed at a moment of their own, in processes that are forked, so that no time goes into imports."""

from __future__ import annotations

import dataclasses
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import hf_compact_embeddings as hce
from hf_compact_embeddings.checkpoints import load_compact, write_checkpoint
from hf_compact_embeddings.cli.main import main
from hf_compact_embeddings.hub.card import write_card
from hf_compact_embeddings.modeling.errors import CheckpointError

from ..tiny_models import tiny_model
from ..tools import tiny_texts, tiny_tokenizer

Tensors = dict[str, torch.Tensor]

OLD, NEW, NOTHING = "old", "new", "nothing"


@dataclasses.dataclass(frozen=True)
class Verb:
    """Something that writes.

    Attributes:
        run: does it in a folder: what was there before stands under `out`, as what it writes.
        over: whether an older checkpoint is there before.
        needs_card: whether what it writes is whole with a card only.
    """

    run: Callable[[Path], object]
    over: bool = False
    needs_card: bool = False


class Scene:
    """Two models that can be told apart, and what is done with them."""

    def __init__(self, home: Path) -> None:
        config = hce.SubspaceConfig(num_subspaces=4, codebook_size=16)
        dense = tiny_model("bert", seed=1)
        self.old = hce.compress(tiny_model("bert"), config)
        self.new = hce.compress(dense, config)
        self.home, self.tokenizer, self.dense = home, tiny_tokenizer(), home / "dense"
        dense.save_pretrained(self.dense)
        self.tokenizer.save_pretrained(self.dense)
        self.fit = ["--method", "subspace", "--set", "num_subspaces=4", "--set", "codebook_size=16"]
        self.fit += ["--effort", "fast", "--head", "AutoModelForMaskedLM"]
        # What each verb writes when nothing interrupts it.
        self.expected: dict[Verb, Tensors] = {}
        self.verbs = {
            "write": Verb(self.write, needs_card=True),
            "save": Verb(lambda folder: self.new.save_pretrained(folder / "out")),
            "save over": Verb(lambda folder: self.new.save_pretrained(folder / "out"), over=True),
            "compress": Verb(self.compress, needs_card=True),
            "calibrate": Verb(self.calibrate, over=True),
        }

    def write(self, folder: Path) -> None:
        finish = lambda draft: write_card(draft, self.new)  # noqa: E731
        write_checkpoint(self.new, folder / "out", self.tokenizer, None, finish)

    def compress(self, folder: Path) -> None:
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
        assert main(["compress", str(self.dense), "--output", str(folder / "out"), *self.fit]) == 0

    def calibrate(self, folder: Path) -> None:
        model = load_compact(folder / "out")
        arguments = {"output_dir": str(folder / "out"), "max_steps": 2, "use_cpu": True, "disable_tqdm": True}
        arguments |= {"save_steps": 1, "per_device_train_batch_size": 2, "report_to": []}
        hce.calibrate(model, texts=tiny_texts(4), tokenizer=self.tokenizer, args=arguments, losses={"labels": 1.0})

    def prepare(self, verb: Verb) -> Path:
        """Return a fresh folder, with an older checkpoint in it if the verb needs one."""
        folder = self.home / "folder"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        if verb.over:
            self.old.save_pretrained(folder / "out")
        return folder

    def start(self, verb: Verb, folder: Path) -> int:
        """Run a verb in a process of its own, and return its number."""
        process = os.fork()
        if process:
            return process
        status = 1
        try:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            verb.run(folder)
            status = 0
        except KeyboardInterrupt:
            status = 130
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)

    def seconds(self, verb: Verb) -> float:
        """Return how long a verb takes that nothing interrupts."""
        folder, began = self.prepare(verb), time.monotonic()
        _, status = os.waitpid(self.start(verb, folder), 0)
        took = time.monotonic() - began
        assert status == 0
        self.expected[verb] = stored(load_compact(folder / "out"))
        assert self.state(verb, folder) == NEW
        return took

    def interrupt(self, verb: Verb, folder: Path, after: float, by: int) -> bool:
        """Send a verb a signal after some seconds; return whether it was still running."""
        process = self.start(verb, folder)
        time.sleep(after)
        os.kill(process, by)
        _, status = os.waitpid(process, 0)
        return status != 0

    def state(self, verb: Verb, folder: Path) -> str:
        """Return what lies there, or raise if it is not whole."""
        out = folder / "out"
        if not (out / "config.json").exists():
            return NOTHING
        if verb.needs_card and not (out / "README.md").is_file():
            raise CheckpointError("there is no card")
        found = stored(load_compact(out))
        if same(found, stored(self.old)):
            return OLD
        assert same(found, self.expected[verb]), "it is neither the old nor the new one"
        return NEW


def same(first: Tensors, second: Tensors) -> bool:
    """Whether two models have the same tensors."""
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def stored(model: Any) -> Tensors:
    """Return the tensors of a model as they are once they were stored."""
    return {
        name: tensor.half().float() if tensor.is_floating_point() else tensor
        for name, tensor in model.state_dict().items()
        if ".position_ids" not in name
    }


def kill(scene: Scene, name: str, seconds: float, draw: random.Random, by: int) -> tuple[str, bool]:
    """Interrupt a verb somewhere; return what is there then, and whether it was still running.

    The next run must come to its end, and leave nothing of the one that was killed.
    """
    verb = scene.verbs[name]
    folder = scene.prepare(verb)
    was_running = scene.interrupt(verb, folder, draw.uniform(0, 1.05 * seconds), by)
    found = scene.state(verb, folder)
    if not was_running or (verb.needs_card and found == NEW):
        return found, was_running
    _, status = os.waitpid(scene.start(verb, folder), 0)
    assert status == 0, f"after {name} was killed, it cannot be run again"
    assert scene.state(verb, folder) == NEW
    left = [file.name for file in (*folder.rglob("*.draft"), *folder.rglob(".*"))]
    assert not left, f"after {name} was killed and run again, {left} are left"
    return found, was_running
