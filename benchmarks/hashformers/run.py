r"""HashFormers against a dense table: the same small encoder, pretrained and fine-tuned the same way.

    python -m benchmarks.hashformers.run --text reviews.txt wikitext2/train.txt --glue DATA/glue --work hashformers \
        --output benchmarks/hashformers/results/glue.json

Arms: `proj-lsh`, `proj-md`, `pool` (MD), and `dense`, a full table with a WordPiece tokenizer trained on the same text.
Every arm is pretrained, by finding shuffled and random tokens, on as many of its own tokens, then fine-tuned on
SST-2 (a fixed subset), MRPC and CoLA with several seeds; `scratch:ARM` fine-tunes the arm without pretraining, on
SST-2. The folder holds `sst2`, `mrpc` and `cola`, each with train.jsonl and validation.jsonl in the columns of GLUE.

Every finished run is written at once: the same command goes on where it was interrupted.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from torch.utils.data import IterableDataset
from transformers import (
    AutoModel,
    AutoTokenizer,
    BertConfig,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
)

import hf_compact_embeddings as hce

from ..common.device import device_name, prepare
from ..common.library import fine_tuned_score
from ..common.record import layout, read_rows, write

HASHED = {
    "proj-lsh": {"variant": "proj", "hashing": "lsh"},
    "proj-md": {"variant": "proj", "hashing": "md"},
    "pool": {"variant": "pool", "hashing": "md"},
}
ARMS = (*HASHED, "dense")
TASKS = ("sst2", "mrpc", "cola")
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]

# The options that runs of one table must share.
SETTINGS = (
    *("width", "layers", "heads", "vocabulary", "length", "batch", "tokens", "pretrain_rate"),
    *("rate", "epochs", "fine_batch", "max_rows"),
)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", type=Path, nargs="+", required=True, help="text files, one text a line")
    parser.add_argument("--glue", type=Path, required=True, help="folder with sst2, mrpc and cola")
    parser.add_argument("--output", type=Path, required=True, help="JSON file with all results")
    parser.add_argument("--work", type=Path, required=True, help="folder for pretrained encoders")
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=ARMS)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=TASKS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--scratch-arms", nargs="*", default=["proj-lsh", "dense"], choices=ARMS)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--heads", type=int, default=2)
    parser.add_argument("--vocabulary", type=int, default=8192, help="rows of the dense table")
    parser.add_argument("--length", type=int, default=64, help="tokens of a pretraining row")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=2_000_000, help="pretraining tokens of each arm")
    parser.add_argument("--pretrain-rate", type=float, default=1e-3)
    parser.add_argument("--rate", type=float, default=3e-4)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--fine-batch", type=int, default=32)
    parser.add_argument("--max-rows", type=int, default=10_000, help="training rows of a task, the same for all arms")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def main() -> None:
    """Run what is not done yet, and print the table."""
    options = parse()
    prepare(options.threads)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    options.work.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {"pretraining": {}, "runs": {}}
    if options.output.exists():
        result = json.loads(options.output.read_text())["results"]
    settings = {name: getattr(options, name) for name in SETTINGS}
    if result.setdefault("settings", settings) != settings:
        sys.exit(f"{options.output} was made with {result['settings']}: write to another file")
    for arm in options.arms:
        folder = options.work / arm
        if not (folder / "config.json").exists():
            result["pretraining"][arm] = pretrain(arm, folder, options)
            save(result, options)
    # All arms of a seed before the next seed, so that an unfinished table is fair.
    for seed in range(options.seeds):
        for task in options.tasks:
            scratch = [f"scratch:{arm}" for arm in options.scratch_arms] if task == "sst2" else []
            for arm in [*options.arms, *scratch]:
                key = f"{arm}/{task}/{seed}"
                if key not in result["runs"]:
                    result["runs"][key] = fine_tune(arm, task, seed, options)
                    save(result, options)
    save(result, options)
    print(table(result))


def save(result: dict[str, Any], options: argparse.Namespace) -> None:
    """Write everything that is known, with mean and spread."""
    result["summary"] = summary(result)
    write(options.output, result, threads=options.threads, device=device_name())
    print(f"{time.strftime('%H:%M:%S')} {len(result['runs'])} runs", file=sys.stderr, flush=True)


def summary(result: dict[str, Any]) -> dict[str, dict[str, dict[str, float | None]]]:
    """Return mean and standard deviation over the seeds, by arm and task."""
    scores: dict[str, dict[str, list[float]]] = {}
    for key, run in result["runs"].items():
        arm, task, _ = key.rsplit("/", 2)
        scores.setdefault(arm, {}).setdefault(task, []).append(run["score"])
    return {
        arm: {
            task: {"mean": statistics.mean(values), "std": statistics.stdev(values) if len(values) > 1 else None}
            for task, values in tasks.items()
        }
        for arm, tasks in scores.items()
    }


def table(result: dict[str, Any]) -> str:
    """Return the summary as text."""
    rows = []
    for arm, tasks in result["summary"].items():
        cells = [tasks.get(task) for task in TASKS]
        means = [cell["mean"] for cell in cells if cell is not None]
        mean = f"{statistics.mean(means):.1f}" if len(means) == len(TASKS) else ""
        rows.append([arm, *("" if cell is None else _with_spread(cell) for cell in cells), mean])
    return layout(["arm", *TASKS, "mean"], rows)


def _with_spread(cell: dict[str, Any]) -> str:
    return f"{cell['mean']:.1f}" + ("" if cell["std"] is None else f" ± {cell['std']:.1f}")


# Models and tokenizers


def lines_of(files: Sequence[Path]) -> Iterator[str]:
    """Yield the texts, the files taking turns, for ever."""
    while True:
        handles = [file.open(encoding="utf-8") for file in files]
        while handles:
            for handle in list(handles):
                line = handle.readline()
                if not line:
                    handle.close()
                    handles.remove(handle)
                elif len(line.split()) > 4:
                    yield line.strip()


def tokenizer_of(arm: str, options: argparse.Namespace) -> PreTrainedTokenizerBase:
    """Return an arm's tokenizer; the dense arm's is trained on the texts."""
    if arm in HASHED:
        return hce.CompactHashTokenizer(hashing=HASHED[arm]["hashing"], model_max_length=options.length)
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(strip_accents=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=options.vocabulary, special_tokens=SPECIAL, show_progress=False)
    files = [str(file) for file in options.text]
    tokenizer.train(files, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", SPECIAL.index("[CLS]")), ("[SEP]", SPECIAL.index("[SEP]"))],
    )
    special = {f"{token.strip('[]').lower()}_token": token for token in SPECIAL}
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=options.length, model_input_names=inputs, **special
    )


def config_of(arm: str, tokenizer: PreTrainedTokenizerBase, options: argparse.Namespace) -> BertConfig:
    """Return the encoder's configuration: the same for all arms but for the table."""
    shape = {
        "hidden_size": options.width,
        "num_hidden_layers": options.layers,
        "num_attention_heads": options.heads,
        "intermediate_size": 4 * options.width,
        "max_position_embeddings": max(128, options.length),
        "pad_token_id": 0,
    }
    if arm not in HASHED:
        return BertConfig(vocab_size=len(tokenizer), **shape)
    hashed = hce.HashConfig.for_tokenizer(tokenizer, variant=HASHED[arm]["variant"])
    return hce.CompactBertConfig(vocab_size=len(tokenizer), compact_embeddings=hashed, **shape)


# Training


class PackedTexts(IterableDataset):
    """Rows of exactly so many tokens, without end: long texts cut and short ones joined."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, files: Sequence[Path], length: int) -> None:
        """Note what to read."""
        self.tokenizer, self.files, self.length = tokenizer, files, length

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield rows from the start of the files on."""
        texts = lines_of(self.files)
        while True:
            packed = hce.training.packed_rows(self.tokenizer, [next(texts) for _ in range(256)], self.length)
            rows = [dict(zip(packed, values, strict=True)) for values in zip(*packed.values(), strict=True)]
            # The last one is shorter.
            yield from rows[:-1]


def arguments(options: argparse.Namespace, folder: Path, rate: float, batch: int, **more: Any) -> dict[str, Any]:
    """Return what pretraining and fine-tuning have in common."""
    return {
        "output_dir": str(folder),
        "per_device_train_batch_size": batch,
        "learning_rate": rate,
        "lr_scheduler_type": "linear",
        "warmup_steps": 0.1,
        "weight_decay": 0.01,
        "bf16": True,
        "use_cpu": not torch.cuda.is_available(),
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        **more,
    }


def pretrain(arm: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Pretrain an arm, save its encoder and its tokenizer, and return what it took."""
    started = time.perf_counter()
    tokenizer = tokenizer_of(arm, options)
    torch.manual_seed(0)
    model = hce.training.token_manipulation_model(config_of(arm, tokenizer, options))
    steps = max(1, options.tokens // (options.batch * options.length))
    noted = max(1, steps // 10)
    given = arguments(
        options, folder, options.pretrain_rate, options.batch, max_steps=steps, logging_steps=noted, seed=0
    )
    trainer = Trainer(
        model=model,
        args=TrainingArguments(**given),
        train_dataset=PackedTexts(tokenizer, options.text, options.length),
        data_collator=hce.training.DataCollatorForTokenManipulation(tokenizer),
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    hce.training.encoder_of(trainer.model).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return {
        "tokens": steps * options.batch * options.length,
        "embedding_parameters": sum(value.numel() for value in model.get_input_embeddings().parameters()),
        "first_loss": losses[0],
        "last_loss": losses[-1],
        "seconds": time.perf_counter() - started,
    }


def fine_tune(arm: str, task: str, seed: int, options: argparse.Namespace) -> dict[str, float]:
    """Fine-tune an arm on a task, and return its score on the validation rows."""
    started = time.perf_counter()
    pretrained = options.work / arm.removeprefix("scratch:")
    folder = pretrained if options.work / arm == pretrained else untrained(pretrained, seed, options)
    train, rows = (read_rows(options.glue / task / f"{part}.jsonl") for part in ("train", "validation"))
    # The same rows in every run: the subset does not depend on the seed.
    random.Random(0).shuffle(train)
    given = arguments(options, folder, options.rate, options.fine_batch, num_train_epochs=options.epochs)
    del given["output_dir"]
    tokenizer = AutoTokenizer.from_pretrained(pretrained)
    score, _ = fine_tuned_score(folder, task, tokenizer, rows, train[: options.max_rows], seed, given, options.length)
    return {"score": score, "seconds": time.perf_counter() - started}


def untrained(pretrained: Path, seed: int, options: argparse.Namespace) -> Path:
    """Return the folder of an encoder of the same kind that has learned nothing."""
    folder = options.work / f"untrained-{pretrained.name}-{seed}"
    tokenizer = AutoTokenizer.from_pretrained(pretrained)
    torch.manual_seed(seed)
    AutoModel.from_config(config_of(pretrained.name, tokenizer, options)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


if __name__ == "__main__":
    main()
