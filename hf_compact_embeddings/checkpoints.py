"""Whole checkpoints on disk: a compact model with its tokenizer and what else the original's folder holds."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import transformers
from huggingface_hub import snapshot_download
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.hub import extract_commit_hash

from .drafts import whole_folder
from .modeling import modeling_compact
from .modeling.code_files import changed_files, code_record
from .modeling.errors import CheckpointError, CompactConfigError, CompactEmbeddingsError
from .modeling.transformers_internals import cached_file_or_none
from .transformers_internals import set_commit

# What makes a Transformers folder a sentence-transformers one.
SENTENCE_FILES = ("modules.json", "sentence_*_config.json", "config_sentence_transformers.json", "*_*/*")
# Some messages list all architectures that there are.
_LONGEST_REASON = 300
# Any of them makes a tokenizer: its own files, vocabularies, and models of sentencepiece and tiktoken.
_TOKENIZER_FILES = ("*token*", "vocab*", "*.model", "*.spm", "*.tiktoken")


def require_free_folder(folder: str | Path) -> Path:
    """Return the path of a folder that may be written: absent, or empty."""
    path = Path(folder)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise CompactConfigError(f"`output` {str(folder)!r} exists and is not an empty folder: nothing was written.")
    return path


def write_checkpoint(
    compact: PreTrainedModel,
    folder: str | Path,
    tokenizer: PreTrainedTokenizerBase | None = None,
    source: str | Path | None = None,
    complete: Callable[[Path], object] | None = None,
) -> Path:
    """Save a compact model, its tokenizer and the original's sentence-transformers files; all of it or nothing.

    Args:
        compact: the model.
        folder: where to; must be absent or empty.
        tokenizer: saved beside the model.
        source: the Hub id or folder that the model was made from.
        complete: adds to the folder what else belongs there, before it stands where it is wanted.
    """
    target = require_free_folder(folder)
    with whole_folder(target) as draft:
        compact.save_pretrained(draft)
        if tokenizer is not None:
            tokenizer.save_pretrained(draft)
        if source is not None:
            copy_sentence_files(source, draft)
        _record_code(draft)
        if complete is not None:
            complete(draft)
    return target


def folder_bytes(folder: str | Path) -> int:
    """Return the bytes of all files in a folder but its card: weights, code, tokenizer, and what else there is."""
    files = (path for path in Path(folder).rglob("*") if path.is_file() and path.name != "README.md")
    return sum(path.stat().st_size for path in files)


def _record_code(folder: Path) -> None:
    """Write the hashes of all code files in a checkpoint into its configuration: the tokenizer may have its own."""
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["compact_code"] = code_record({file.name: file.read_bytes() for file in folder.glob("*.py")})
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def changed_code(model: str | Path) -> list[str]:
    """Return the code files of a compact Hub id or folder that are not those it was saved with."""
    folder = Path(model)
    if not folder.is_dir():
        folder = Path(snapshot_download(str(model), allow_patterns=["*.py", "config.json"]))
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return changed_files(config.get("compact_code"), folder)


def copy_sentence_files(source: str | Path, target: Path) -> None:
    """Copy what makes a Hub id or folder a sentence-transformers one, if anything does."""
    folder = Path(source)
    if not folder.is_dir():
        folder = Path(snapshot_download(str(source), allow_patterns=list(SENTENCE_FILES)))
    if not (folder / "modules.json").is_file():
        return
    for pattern in SENTENCE_FILES:
        for file in folder.glob(pattern):
            destination = target / file.relative_to(folder)
            destination.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, destination)


@contextlib.contextmanager
def _reading(model: str | Path) -> Iterator[None]:
    """Say which checkpoint it is that cannot be read, in one kind of error."""
    try:
        yield
    except CompactEmbeddingsError:
        raise
    except Exception as error:
        # What a damaged checkpoint ends in may be any exception: each library that reads a part of it has its own.
        reason = " ".join(str(error).split()) or type(error).__name__
        if len(reason) > _LONGEST_REASON:
            reason = f"{reason[:_LONGEST_REASON]}…"
        known = Path(model).exists()
        fault = "cannot be loaded" if known else "is no folder here, and no model of the Hub that could be loaded"
        raise CheckpointError(f"`model` {str(model)!r} {fault}: {reason}") from error


def load_compact(folder: str | Path, **options: Any) -> PreTrainedModel:
    """Load a compact checkpoint from a Hub id or folder, with the class that it was saved from, and its options."""
    with _reading(folder):
        config = AutoConfig.from_pretrained(folder)
        names = getattr(config, "architectures", None) or []
        if not config.model_type.startswith("compact-") or not names:
            raise CheckpointError(f"{str(folder)!r} is a {config.model_type!r} checkpoint, which is not compact.")
        return getattr(modeling_compact, names[0]).from_pretrained(folder, **options)


def load_dense(model: str | Path, auto_class: Any = None) -> PreTrainedModel:
    """Load a Hub id or folder with an Auto class, or with the class that its configuration names."""
    with _reading(model):
        return _load_dense(model, auto_class)


def _load_dense(model: str | Path, auto_class: Any) -> PreTrainedModel:
    if auto_class is not None:
        return _with_commit(auto_class.from_pretrained(model), model)
    config = AutoConfig.from_pretrained(model)
    if config.model_type.startswith("compact-"):
        raise CompactConfigError(f"`model` {str(model)!r} is compact already ({config.model_type}).")
    names = getattr(config, "architectures", None) or []
    found = [getattr(transformers, name) for name in names if hasattr(transformers, name)]
    if not found:
        raise CompactConfigError(
            f"`model` {str(model)!r} names no class of Transformers in `architectures` ({names}): "
            "pass `auto_class`, for example AutoModelForMaskedLM."
        )
    return _with_commit(found[0].from_pretrained(model), model)


def _with_commit(loaded: PreTrainedModel, model: str | Path) -> PreTrainedModel:
    """Note the commit of a Hub id that was just loaded; it is never saved with the model."""
    config_file = cached_file_or_none(str(model), "config.json", local_files_only=True)
    set_commit(loaded.config, extract_commit_hash(config_file, None))
    return loaded


def load_tokenizer(model: str | Path) -> PreTrainedTokenizerBase | None:
    """Load the tokenizer of a Hub id or folder, or return None where there is none."""
    folder = Path(model)
    if folder.is_dir() and not any(any(folder.glob(pattern)) for pattern in _TOKENIZER_FILES):
        return None
    with _reading(model):
        return AutoTokenizer.from_pretrained(model, trust_remote_code=False)
