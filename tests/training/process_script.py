"""Run in each process of a training: calibrates and writes what this process ends with."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from accelerate import PartialState
from transformers import AutoModelForMaskedLM, AutoTokenizer

import hf_compact_embeddings  # noqa: F401
from hf_compact_embeddings.checkpoints import load_compact
from hf_compact_embeddings.evidence.texts import HubTexts
from hf_compact_embeddings.finetuning.trainer import leave_process_group
from hf_compact_embeddings.training.calibration import calibrate

from ..contract.data_parallel_script import digest


def main(folder: Path, name: str, batch_size: int) -> None:
    compact = load_compact(folder / "compact")
    streamed = name.startswith("streamed")
    calibrate(
        compact,
        teacher=AutoModelForMaskedLM.from_pretrained(folder / "teacher"),
        tokenizer=AutoTokenizer.from_pretrained(folder / "teacher"),
        texts=HubTexts(str(folder / "stream")) if streamed else json.loads((folder / "texts.json").read_text()),
        # All rows have as many positions, so that the mean over a batch is the mean over its halves.
        losses={"logits": 1.0, **({"labels": 1.0, "states": 1.0} if streamed else {})},
        predicted_share=1.0,
        trains="all",
        max_length=16,
        args={
            "output_dir": str(folder / name),
            "max_steps": 7,
            "save_steps": 3,
            "per_device_train_batch_size": batch_size,
            "use_cpu": True,
            "disable_tqdm": True,
            "report_to": "none",
        },
    )
    result = {"processes": PartialState().num_processes, "digest": digest(compact)}
    (folder / f"{name}-{PartialState().process_index}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
    leave_process_group()
