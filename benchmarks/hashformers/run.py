"""HashFormers against a dense table: the same small encoder, pretrained and fine-tuned the same way.

    python benchmarks/hashformer_glue.py --text reviews.txt wiki.txt --glue GLUE_FOLDER --output result.json

Arms: `proj-lsh`, `proj-md`, `pool` (MD), and `dense`, a full table with a WordPiece tokenizer trained on the same text.
Every arm is pretrained by telling shuffled and random tokens for the same number of its own tokens, then fine-tuned on
SST-2 (a fixed subset), MRPC and CoLA with several seeds; `scratch:ARM` fine-tunes the arm without pretraining, on
SST-2. The folder holds `sst2`, `mrpc` and `cola`, each with train.jsonl and validation.jsonl in the columns of GLUE.

Every finished run is written at once: the same command goes on where it was interrupted.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch  # noqa: E402
import transformers  # noqa: E402
from record import read_rows, write  # noqa: E402
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers  # noqa: E402
from torch import Tensor  # noqa: E402
from transformers import (  # noqa: E402
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    get_linear_schedule_with_warmup,
)

import hf_compact_embeddings as hce  # noqa: E402
from hf_compact_embeddings.training.token_manipulation import (  # noqa: E402
    DataCollatorForTokenManipulation,
    encoder_of,
    token_manipulation_model,
)

HASHED = {
    "proj-lsh": {"variant": "proj", "hashing": "lsh"},
    "proj-md": {"variant": "proj", "hashing": "md"},
    "pool": {"variant": "pool", "hashing": "md"},
}
ARMS = (*HASHED, "dense")
TASKS = {"sst2": ("sentence",), "mrpc": ("sentence1", "sentence2"), "cola": ("sentence",)}
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
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
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
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def main() -> None:
    """Run what is not done yet, and print the table."""
    options = parse()
    torch.set_num_threads(options.threads)
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
    write(options.output, result, threads=options.threads)
    print(f"{time.strftime('%H:%M:%S')} {len(result['runs'])} runs", file=sys.stderr, flush=True)


def summary(result: dict[str, Any]) -> dict[str, dict[str, dict[str, float]]]:
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
    lines = [f"{'arm':<20}" + "".join(f"{task:>16}" for task in TASKS) + f"{'mean':>10}"]
    for arm, tasks in result["summary"].items():
        cells = [tasks.get(task) for task in TASKS]
        texts = ["" if cell is None else f"{cell['mean']:.1f}" + spread(cell["std"]) for cell in cells]
        means = [cell["mean"] for cell in cells if cell is not None]
        mean = f"{statistics.mean(means):.1f}" if len(means) == len(TASKS) else ""
        lines.append(f"{arm:<20}" + "".join(f"{text:>16}" for text in texts) + f"{mean:>10}")
    return "\n".join(lines)


def spread(deviation: float | None) -> str:
    """Return what follows a mean."""
    return "" if deviation is None else f" ± {deviation:.1f}"


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
    """Return an arm's tokenizer; the dense arm's is trained on the texts, as far as 20 MB of them go."""
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
    names = {f"{name.strip('[]').lower()}_token": name for name in SPECIAL}
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=options.length, model_input_names=inputs, **names
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
        # On CPUs the fused attention has a backward pass several times as slow.
        "attn_implementation": "eager",
    }
    if arm not in HASHED:
        return BertConfig(vocab_size=len(tokenizer), **shape)
    hashed = hce.HashConfig.for_tokenizer(tokenizer, variant=HASHED[arm]["variant"])
    return hce.CompactBertConfig(vocab_size=len(tokenizer), compact_embeddings=hashed, **shape)


# Training


def pretrain(arm: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Pretrain an arm, save its encoder and its tokenizer, and return what it took."""
    started = time.perf_counter()
    tokenizer = tokenizer_of(arm, options)
    torch.manual_seed(0)
    model = token_manipulation_model(config_of(arm, tokenizer, options)).to(options.device).train()
    collator = DataCollatorForTokenManipulation(tokenizer)
    steps = max(1, options.tokens // (options.batch * options.length))
    rows = packed_rows(tokenizer, options)
    losses: list[float] = []
    correct = changed = 0

    def batches() -> Iterator[dict[str, Tensor]]:
        for _ in range(steps):
            yield collator([next(rows) for _ in range(options.batch)])

    for batch, output in steps_of(model, batches(), steps, options.pretrain_rate, options.device):
        losses.append(float(output.loss.detach()))
        if len(losses) > steps - max(1, steps // 10):
            manipulated = batch["labels"] > 0
            correct += int((output.logits.argmax(-1) == batch["labels"])[manipulated].sum())
            changed += int(manipulated.sum())
    embeddings = sum(parameter.numel() for parameter in model.get_input_embeddings().parameters())
    encoder_of(model).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return {
        "tokens": steps * options.batch * options.length,
        "embedding_parameters": embeddings,
        "first_loss": statistics.mean(losses[: max(1, steps // 10)]),
        "last_loss": statistics.mean(losses[-max(1, steps // 10) :]),
        "manipulated_found": correct / max(1, changed),
        "seconds": time.perf_counter() - started,
    }


def packed_rows(tokenizer: PreTrainedTokenizerBase, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield rows of exactly `length` tokens, long texts cut and short ones joined."""
    texts = lines_of(options.text)
    room = options.length - 2
    names = [name for name in tokenizer.model_input_names if name not in ("token_type_ids", "attention_mask")]
    waiting: dict[str, list[Any]] = {name: [] for name in names}
    first, last = (tokenizer(" ", return_attention_mask=False)[name] for name in ("input_ids", "input_ids"))
    while True:
        encoded = tokenizer([next(texts) for _ in range(64)], add_special_tokens=False, verbose=False)
        for index in range(64):
            for name in names:
                waiting[name] += encoded[name][index]
        while len(waiting["input_ids"]) >= room:
            row = {}
            for name in names:
                edges = [first[0], last[-1]] if name == "input_ids" else [(0, 0), (0, 0)]
                row[name] = [edges[0], *waiting[name][:room], edges[1]]
                waiting[name] = waiting[name][room:]
            yield row


def steps_of(
    model: Any, batches: Iterator[dict[str, Tensor]], steps: int, rate: float, device: str
) -> Iterator[tuple[dict[str, Tensor], Any]]:
    """Train on the batches and yield each with what the model gave for it."""
    decayed = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=rate)
    schedule = get_linear_schedule_with_warmup(optimizer, steps // 10, steps)
    for batch in batches:
        batch = {name: tensor.to(device) for name, tensor in batch.items()}
        with torch.autocast(device, dtype=torch.bfloat16):
            output = model(**batch)
        output.loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        yield batch, output


def fine_tune(arm: str, task: str, seed: int, options: argparse.Namespace) -> dict[str, float]:
    """Fine-tune an arm on a task, and return its score on the validation rows."""
    started = time.perf_counter()
    name = arm.removeprefix("scratch:")
    folder = options.work / name
    tokenizer = AutoTokenizer.from_pretrained(folder)
    torch.manual_seed(seed)
    if arm == name:
        model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2)
    else:
        model = AutoModelForSequenceClassification.from_config(config_of(name, tokenizer, options))
    model = model.to(options.device).train()
    train, rows = (read_rows(options.glue / task / f"{part}.jsonl") for part in ("train", "validation"))
    # The same rows in every run: the subset does not depend on the seed.
    chosen = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))[: options.max_rows]
    train = [train[int(index)] for index in chosen]
    encoded, held_out = encode(tokenizer, train, task), encode(tokenizer, rows, task)
    steps = options.epochs * math.ceil(len(train) / options.fine_batch)

    def batches() -> Iterator[dict[str, Tensor]]:
        for _ in range(options.epochs):
            for places in torch.randperm(len(train)).split(options.fine_batch):
                yield collate(tokenizer, [encoded[int(place)] for place in places])

    for _ in steps_of(model, batches(), steps, options.rate, options.device):
        pass
    model.eval()
    guesses: list[int] = []
    with torch.no_grad():
        for start in range(0, len(rows), 128):
            batch = collate(tokenizer, held_out[start : start + 128])
            batch.pop("labels")
            moved = {key: value.to(options.device) for key, value in batch.items()}
            guesses += model(**moved).logits.argmax(-1).tolist()
    truth = [int(row["label"]) for row in rows]
    return {"score": score(task, guesses, truth), "seconds": time.perf_counter() - started}


def encode(tokenizer: PreTrainedTokenizerBase, rows: list[dict[str, Any]], task: str) -> list[dict[str, Any]]:
    """Return the model's inputs and the label of each row."""
    texts = [[row[column] for row in rows] for column in TASKS[task]]
    encoded = tokenizer(*texts, truncation=True)
    return [
        {**{name: encoded[name][index] for name in tokenizer.model_input_names}, "labels": int(row["label"])}
        for index, row in enumerate(rows)
    ]


def collate(tokenizer: PreTrainedTokenizerBase, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Pad rows to tensors."""
    return dict(tokenizer.pad(rows, return_tensors="pt"))


def score(task: str, guesses: list[int], truth: list[int]) -> float:
    """Return GLUE's measure in per cent: accuracy, mean of accuracy and F1 (MRPC), Matthews correlation (CoLA)."""
    pairs = list(zip(guesses, truth, strict=True))
    true, false = pairs.count((1, 1)), pairs.count((1, 0))
    missed, rejected = pairs.count((0, 1)), pairs.count((0, 0))
    accuracy = (true + rejected) / len(pairs)
    if task == "mrpc":
        f1 = 2 * true / max(1, 2 * true + false + missed)
        return 50 * (accuracy + f1)
    if task == "cola":
        product = (true + false) * (true + missed) * (rejected + false) * (rejected + missed)
        return 100 * (true * rejected - false * missed) / math.sqrt(product) if product else 0.0
    return 100 * accuracy


if __name__ == "__main__":
    main()
