"""A calibration that is killed goes on where it was, and ends as if it had not been."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hf_compact_embeddings.training.trainer import EXACT_TABLE, last_checkpoint

from ..cases import compress_tiny, first_cases
from ..tools import REPOSITORY, tiny_texts, tiny_tokenizer

SCRIPT = """
import json, sys, time
import torch
from transformers import TrainerCallback
import hf_compact_embeddings as hce
from hf_compact_embeddings.checkpoints import load_compact
from hf_compact_embeddings.training.calibration import calibrate
from transformers import AutoModelForMaskedLM, AutoTokenizer

torch.set_num_threads(1)
folder, output, pause = sys.argv[1], sys.argv[2], float(sys.argv[3])

class Slow(TrainerCallback):
    def on_step_end(self, *_, **__):
        time.sleep(pause)

compact = load_compact(f"{folder}/compact")
calibrate(
    compact,
    teacher=AutoModelForMaskedLM.from_pretrained(f"{folder}/teacher"),
    tokenizer=AutoTokenizer.from_pretrained(f"{folder}/teacher"),
    texts=json.load(open(f"{folder}/texts.json")),
    trains="all",
    max_length=16,
    callbacks=[Slow()],
    resume_from_checkpoint=True,
    args={"output_dir": output, "max_steps": 12, "save_steps": 3, "per_device_train_batch_size": 4,
          "learning_rate": 1e-3, "use_cpu": True, "disable_tqdm": True, "seed": 5},
)
"""


def start(folder: Path, output: Path, pause: float) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "HF_HOME": str(folder / "home")}
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(folder), str(output), str(pause)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.skipif(sys.platform == "win32", reason="has no SIGKILL")
def test_a_killed_calibration_goes_on(tmp_path: Path) -> None:
    teacher, compact = compress_tiny("bert", first_cases("project", "dense")[0])
    teacher.save_pretrained(tmp_path / "teacher")
    tiny_tokenizer().save_pretrained(tmp_path / "teacher")
    compact.save_pretrained(tmp_path / "compact")
    (tmp_path / "texts.json").write_text(json.dumps(tiny_texts(60)))
    whole = start(tmp_path, tmp_path / "whole", 0.0)
    killed = start(tmp_path, tmp_path / "killed", 0.5)
    limit = time.monotonic() + 120
    while last_checkpoint(tmp_path / "killed") is None and killed.poll() is None and time.monotonic() < limit:
        time.sleep(0.05)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    step = last_checkpoint(tmp_path / "killed")
    assert step is not None and not (tmp_path / "killed" / "model.safetensors").exists()
    resumed = start(tmp_path, tmp_path / "killed", 0.0)
    for process in (whole, resumed):
        output = process.communicate(timeout=200)[0]
        assert process.returncode == 0, output
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "killed"))
    before = load_file(tmp_path / "compact" / "model.safetensors")
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, atol=1e-6, rtol=1e-5, msg=name)
    assert not all(torch.equal(tensor, before[name]) for name, tensor in first.items())
    codes = next(name for name in first if name.endswith(".codes"))
    assert torch.equal(first[codes], before[codes]) and torch.equal(first[codes], second[codes])
    # The last checkpoints hold the table unrounded, and alike.
    exact = [load_file(tmp_path / name / "checkpoint-12" / EXACT_TABLE) for name in ("whole", "killed")]
    for name, tensor in exact[0].items():
        assert tensor.dtype == torch.float32
        torch.testing.assert_close(exact[1][name], tensor, atol=1e-7, rtol=1e-6)
    assert any(not torch.equal(tensor, tensor.half().float()) for tensor in exact[0].values())
