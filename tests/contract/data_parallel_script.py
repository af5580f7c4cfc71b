"""Run by `accelerate launch` in each process: trains a compact model and reports what this process ends with."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from transformers import AutoModelForSequenceClassification, Trainer, TrainingArguments

import hf_compact_embeddings  # noqa: F401
from hf_compact_embeddings.finetuning.trainer import leave_process_group


def digest(model: torch.nn.Module) -> str:
    """Return a hash of everything that the model holds."""
    content = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        content.update(name.encode() + tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return content.hexdigest()


def own_codes_survive_a_step(accelerator: Accelerator, folder: Path) -> bool:
    """Change this process's codes, take a training step, and tell whether they are still as changed."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).train()
    prepared = accelerator.prepare(model)
    buffers = list(model.get_input_embeddings().buffers())
    assert buffers, "there are no codes to broadcast"
    with torch.no_grad():
        for buffer in buffers:
            buffer.fill_(accelerator.process_index)
    prepared(input_ids=torch.tensor([[5, 6, 7]]), labels=torch.tensor([1])).loss.backward()
    return all(bool((buffer == accelerator.process_index).all()) for buffer in buffers)


def main(folder: Path) -> None:
    accelerator = Accelerator(cpu=True)
    kept = own_codes_survive_a_step(accelerator, folder)
    torch.manual_seed(accelerator.process_index)
    # Each process reads its own half of the rows.
    ids = torch.randint(5, 120, (16, 6), generator=torch.Generator().manual_seed(0))
    rows = [{"input_ids": row, "labels": int(row[0] > 60)} for row in ids]
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    arguments = TrainingArguments(
        str(folder / "run"), max_steps=3, per_device_train_batch_size=2, learning_rate=1e-2, use_cpu=True
    )
    before = digest(model)
    trainer = Trainer(model=model, args=arguments, train_dataset=rows)
    trainer.train()
    trainer.save_model(str(folder / "trained"))
    result = {
        "processes": accelerator.num_processes,
        "kept": kept,
        "before": before,
        "after": digest(model),
    }
    (folder / f"result-{accelerator.process_index}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
    leave_process_group()
