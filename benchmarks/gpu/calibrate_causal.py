r"""Calibrate compact causal models by distillation on one accelerator, in minutes, and measure them.

    python -m benchmarks.gpu.calibrate_causal --dense DENSE_FOLDER --fits 16x=FIT_16 25x=FIT_25 50x=FIT_50 \
        --texts wikitext2/train.txt reviews.txt --held-out wikitext2/valid.txt --minutes 8 --output causal.json

Every fit is the checkpoint of a compact copy of the dense model, which brings its own code: nothing else is needed than
torch and transformers. All learn side by side from the same batches, so that the dense model reads each batch once.
First the table's floats, the norms, and a linear map and a bias of the head's own are trained, then all layers too.
The last windows of the first text choose what is kept; the held-out text is read for the figures alone. The schedule
runs on the clock, and the record is written as it goes.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from .compact_head import Divergence, HeadMap, Student, compare, dense_statistics, summary

_WINDOW = 512
_CHOICE_WINDOWS = 48
_STATISTICS_WINDOWS = 40
_STAGES = {"table and norms": ("table", "head", "norms"), "all": ("table", "head", "norms", "layers")}
_CHECKS_PER_STAGE = 6
_WARM_UP = 0.05


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--dense", required=True, help="folder of the dense model and its tokenizer")
    parser.add_argument("--fits", nargs="+", required=True, metavar="NAME=FOLDER", help="compact checkpoints")
    parser.add_argument("--texts", nargs="+", required=True, help="text files; batches take equally from all")
    parser.add_argument("--held-out", required=True, help="text file to measure on")
    parser.add_argument("--held-out-windows", type=int, help="read only so many windows of it")
    parser.add_argument("--minutes", type=float, default=8.0, help="of training, all stages together")
    parser.add_argument("--steps", type=int, default=1_000_000, help="at most, in each stage")
    parser.add_argument("--first-share", type=float, default=0.2, help="of the minutes, for the first stage")
    parser.add_argument("--batch", type=int, default=32, help="windows of 512 tokens a step")
    parser.add_argument("--learning-rate", type=float, default=5e-4, help="of layers and norms")
    parser.add_argument("--table-rate", type=float, default=0.005, help="of the rest, as a share of each tensor's size")
    parser.add_argument("--no-map", action="store_true", help="leave the head without a map and a bias of its own")
    parser.add_argument("--map-bits", type=int, default=4)
    parser.add_argument("--positions", type=int, default=4096, help="positions that are scored at a time")
    parser.add_argument("--compile", action="store_true", help="compile the layers")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    return parser.parse_args()


class Record:
    """What is written: settings, and results as they come."""

    def __init__(self, options: argparse.Namespace) -> None:
        """Begin with what is known."""
        self.path, self.began = options.output, time.perf_counter()
        names = ("dense", "held_out", "output", "texts", "fits")
        settings = {name: value for name, value in vars(options).items() if name not in names}
        settings["texts"] = ["/".join(Path(path).parts[-2:]) for path in options.texts]
        settings["held_out"] = "/".join(Path(options.held_out).parts[-2:])
        self.content: dict[str, Any] = {
            "versions": {
                "python": platform.python_version(),
                "torch": torch.__version__,
                "transformers": transformers.__version__,
            },
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
            "settings": settings,
            "results": [],
            "stages": [],
            "curve": [],
        }

    def add(self, section: str, **entry: Any) -> None:
        """Append to a section, write the file, and print."""
        entry["at_seconds"] = round(time.perf_counter() - self.began, 1)
        self.content[section].append(entry)
        self.content["seconds"] = entry["at_seconds"]
        self.path.write_text(json.dumps(self.content, indent=1) + "\n", encoding="utf-8")
        print(section, json.dumps(entry), flush=True)


def windows_of(path: str, tokenizer: Any) -> Tensor:
    """Return a text as windows (N, 512) that do not overlap, its lines joined."""
    lines = [line.strip() for line in Path(path).read_text(encoding="utf-8").split("\n") if line.strip()]
    ids = tokenizer(lines, add_special_tokens=False, verbose=False)["input_ids"]
    flat = torch.tensor([token for line in ids for token in line])
    return flat[: len(flat) // _WINDOW * _WINDOW].view(-1, _WINDOW)


class Batches:
    """Windows in random order, equally many from each text, for ever."""

    def __init__(self, texts: list[Tensor], size: int, seed: int) -> None:
        """Keep the windows (N, T) of each text."""
        self.texts, self.size = texts, size
        self.generator = torch.Generator().manual_seed(seed)
        self.left = [torch.empty(0, dtype=torch.int64) for _ in texts]

    def draw(self) -> Tensor:
        """Return the next windows (B, T)."""
        parts = []
        for place, text in enumerate(self.texts):
            count = self.size * (place + 1) // len(self.texts) - self.size * place // len(self.texts)
            while len(self.left[place]) < count:
                order = torch.randperm(len(text), generator=self.generator)
                self.left[place] = torch.cat([self.left[place], order])
            parts.append(text[self.left[place][:count]])
            self.left[place] = self.left[place][count:]
        return torch.cat(parts)


def students_of(options: argparse.Namespace, teacher: PreTrainedModel) -> list[Student]:
    """Load the fits, each with a map of the head that changes nothing yet."""
    students = []
    for fit in options.fits:
        name, _, folder = fit.partition("=")
        model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32)
        rows, width = teacher.get_input_embeddings().weight.shape
        head = None if options.no_map else HeadMap(rows, width, bits=options.map_bits).to(teacher.device)
        students.append(Student(name, model.to(teacher.device).train(), head))
    return students


class Stage:
    """Training of some kinds of parameters, for a time."""

    def __init__(
        self, name: str, seconds: float, students: list[Student], options: argparse.Namespace, record: Record
    ) -> None:
        """Make an optimizer for each student."""
        self.name, self.seconds, self.students, self.options, self.record = name, seconds, students, options, record
        self.optimizers = [self._optimizer(student) for student in students]
        self.best: dict[str, tuple[float, list[Tensor]]] = {}
        self.failures = {student.name: 0 for student in students}

    def _optimizer(self, student: Student) -> torch.optim.Optimizer:
        groups: list[dict[str, Any]] = []
        for kind, parameters in student.kinds.items():
            for parameter in parameters:
                parameter.requires_grad_(kind in _STAGES[self.name])
                if not parameter.requires_grad or not parameter.numel():
                    continue
                rate = self.options.learning_rate
                if kind in ("table", "head"):
                    size = float(parameter.detach().square().mean().sqrt())
                    rate = self.options.table_rate * max(size, 1e-3)
                groups.append({"params": [parameter], "lr": rate, "full_rate": rate})
        fused = torch.cuda.is_available()
        return torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.0, fused=fused)

    def trained(self, student: Student) -> list[Tensor]:
        """Return the parameters that are trained."""
        return [parameter for kind in _STAGES[self.name] for parameter in student.kinds[kind]]

    def run(self, teacher: PreTrainedModel, batches: Batches, choice: Tensor) -> None:
        """Train until the time is over, then put the best of the checks back."""
        began, steps, checks, losses = time.perf_counter(), 0, 0, {}
        progress = 0.0
        while progress < 1.0:
            ids = batches.draw().to(teacher.device)
            with torch.no_grad():
                goal_states = teacher.base_model(input_ids=ids, use_cache=False).last_hidden_state.flatten(0, 1)
            for student, optimizer in zip(self.students, self.optimizers, strict=True):
                losses[student.name] = self._step(student, optimizer, ids, goal_states, teacher, progress)
            steps += 1
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            progress = max((time.perf_counter() - began) / self.seconds, steps / self.options.steps)
            if progress >= (checks + 1) / _CHECKS_PER_STAGE or progress >= 1.0:
                checks = max(checks + 1, math.floor(progress * _CHECKS_PER_STAGE))
                self._check(teacher, choice, steps, losses)
        for student in self.students:
            with torch.no_grad():
                for parameter, kept in zip(self.trained(student), self.best[student.name][1], strict=True):
                    parameter.copy_(kept)
        seconds = time.perf_counter() - began
        tokens = steps * self.options.batch * _WINDOW
        self.record.add(
            "stages",
            stage=self.name,
            steps=steps,
            tokens_each=tokens,
            seconds=round(seconds, 1),
            skipped=self.failures,
            seconds_a_step=round(seconds / steps, 4),
        )

    def _step(
        self,
        student: Student,
        optimizer: torch.optim.Optimizer,
        ids: Tensor,
        goal_states: Tensor,
        teacher: PreTrainedModel,
        progress: float,
    ) -> Tensor:
        """Take one step and return the divergence; a step that is not finite is left out."""
        factor = min(1.0, (progress + 1e-3) / _WARM_UP) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
        for group in optimizer.param_groups:
            group["lr"] = group["full_rate"] * factor
        rows = student.rows()
        with torch.autocast(ids.device.type, dtype=torch.bfloat16):
            states = student.states(ids, rows)
        queries, bias = student.queries(states)
        goal_rows = teacher.get_input_embeddings().weight
        loss = Divergence.apply(queries, rows, bias, goal_states, goal_rows, self.options.positions) / len(queries)
        loss.backward()
        parameters = [each for group in optimizer.param_groups for each in group["params"]]
        norm = torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        if bool(norm.isfinite()):
            optimizer.step()
        else:
            self.failures[student.name] += 1
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    def _check(self, teacher: PreTrainedModel, choice: Tensor, steps: int, losses: dict[str, Tensor]) -> None:
        """Round the tables to what would be stored, measure on windows of training text, and keep the best."""
        for student in self.students:
            student.structure.round_to_storage()
            found = float(compare(student, teacher, choice)[:, 2].mean())
            if student.name not in self.best or found < self.best[student.name][0]:
                self.best[student.name] = (found, [each.detach().clone() for each in self.trained(student)])
            batch = round(float(losses[student.name]), 5)
            entry = {"student": student.name, "stage": self.name, "steps": steps}
            self.record.add("curve", **entry, batch_divergence=batch, choice_divergence=round(found, 5))


def main() -> None:
    """Load, solve, train in two stages, and measure after each."""
    options = parse()
    torch.manual_seed(options.seed)
    torch.set_float32_matmul_precision("high")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    record = Record(options)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = AutoTokenizer.from_pretrained(options.dense)
    teacher = AutoModelForCausalLM.from_pretrained(options.dense, dtype=torch.float32).to(device).eval()
    texts = [windows_of(path, tokenizer) for path in options.texts]
    choice, texts[0] = texts[0][-_CHOICE_WINDOWS:], texts[0][:-_CHOICE_WINDOWS]
    held_out = windows_of(options.held_out, tokenizer)[: options.held_out_windows]
    students = students_of(options, teacher)
    record.content["windows"] = {"texts": [len(text) for text in texts], "held_out": len(held_out)}
    dense_bytes = teacher.get_input_embeddings().weight.nbytes

    def measure(after: str) -> None:
        for student in students:
            result = summary(compare(student, teacher, held_out))
            sizes = {"bytes": student.nbytes, "map_bytes": 0 if student.head is None else student.head.nbytes}
            ratio = round(dense_bytes / student.nbytes, 3)
            record.add("results", student=student.name, after=after, **sizes, ratio=ratio, **result)

    measure("fit")
    if not options.no_map:
        given, mean_state = dense_statistics(teacher, texts[0][:_STATISTICS_WINDOWS])
        for student in students:
            assert student.head is not None
            with torch.no_grad():
                student.head.solve(teacher.get_input_embeddings().weight, student.rows(), given, mean_state)
        measure("map in closed form")
    if options.compile:
        for student in students:
            for layer in student.model.base_model.layers:
                layer.compile()
    batches = Batches(texts, options.batch, options.seed)
    shares = {"table and norms": options.first_share, "all": 1.0 - options.first_share}
    for name, share in shares.items():
        if share > 0:
            Stage(name, 60 * options.minutes * share, students, options, record).run(teacher, batches, choice)
            measure(name)


if __name__ == "__main__":
    main()
