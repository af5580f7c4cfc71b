"""What a compact table was made from, and how: kept in `config.compact_source`, so that it can be made again."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from ..modeling.options import StructureConfig
from ..modeling.transformers_internals import commit_of
from ..transformers_internals import primary_auto_class

_SNAPSHOT = re.compile(r"models--([\w.-]+?)--([\w.-]+)/snapshots/([0-9a-f]{40})$")
# How the shell is given what is asked for without a method.
_FLAGS = {"ratio": "--ratio", "max_bytes": "--max-size", "bits_per_weight": "--bits-per-weight", "effort": "--effort"}
_REPO_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


def origin_of(
    model: PreTrainedModel, config: StructureConfig | None, seed: int, *, asked_for: Mapping[str, Any], **given: Any
) -> dict[str, Any]:
    """Return what `compress()` was given, as plain JSON; of a model in a local folder, no path is kept.

    Args:
        model: the dense model.
        config: as it was asked for, or as it was planned; None where plans for several tables differ.
        seed: of the fit.
        asked_for: options, the budget among them, and effort; kept where there is no `config`.
        given: which tables; how layers are stored; which of tokenizer, texts and token_counts there were; counts may be
            a word that says where from. The languages that were asked for, and what the fit was told, in words.
    """
    base_model, revision = hub_origin(model)
    named = model.config.architectures or [type(model).__name__]
    return {
        "base_model": base_model,
        "revision": revision,
        "head": None if named[0] == type(model).__name__ else primary_auto_class(type(model)),
        "method": None if config is None else config.method,
        "options": dict(asked_for) if config is None else _set_options(config),
        "seed": seed,
        **given,
    }


def _set_options(config: StructureConfig) -> dict[str, Any]:
    """Return the options that are not their defaults."""
    values, fields = config.to_json(), dataclasses.fields(config)
    return {field.name: values[field.name] for field in fields if getattr(config, field.name) != field.default}


def hub_origin(model: PreTrainedModel) -> tuple[str | None, str | None]:
    """Return the Hub id and the commit that a model was loaded from, as far as they are known."""
    name = str(model.config.name_or_path or "")
    if Path(name).is_dir():
        snapshot = _SNAPSHOT.search(Path(name).absolute().as_posix())
        return (None, None) if snapshot is None else (f"{snapshot[1]}/{snapshot[2]}", snapshot[3])
    if not _REPO_ID.fullmatch(name):
        return None, None
    return name, commit_of(model.config)


def command_of(source: dict[str, Any], base_model: str, output: str) -> str:
    """Return what makes a table again: a shell command, or Python where no tokenizer was given."""
    if not source["tokenizer"]:
        return _call_of(source, base_model)
    words = ["hf-compact", "compress", base_model, *(["--method", source["method"]] if source["method"] else [])]
    words += ["--tables", source["tables"]] if _more_than_input(source) else []
    words += ["--layers", source["layers"]] if source.get("layers") else []
    words += ["--head", source["head"]] if source["head"] else []
    for name, value in source["options"].items():
        text = value if isinstance(value, str) else json.dumps(value)
        flag = None if source["method"] else _FLAGS.get(name)
        words += [flag, text] if flag else ["--set", f"{name}={text}"]
    words += ["--seed", str(source["seed"])] if source["seed"] else []
    words += ["--texts", "TEXTS"] if source["texts"] else []
    counts = source["token_counts"]
    words += ["--token-counts", counts if isinstance(counts, str) else "COUNTS"] if counts else []
    words += [word for code in source["languages"] or () for word in ("--language", code)]
    return shlex.join([*words, "--output", output])


def _call_of(source: dict[str, Any], base_model: str) -> str:
    words = [repr(base_model), *([repr(source["method"])] if source["method"] else [])]
    words += [f"tables={source['tables']!r}"] if _more_than_input(source) else []
    words += [f"layers={source['layers']!r}"] if source.get("layers") else []
    words += [f"{name}={value!r}" for name, value in source["options"].items()]
    words += [f"auto_class=transformers.{source['head']}"] if source["head"] else []
    words += [f"seed={source['seed']}"] if source["seed"] else []
    words += ["token_counts=COUNTS"] if source["token_counts"] else []
    return f"hf_compact_embeddings.compress({', '.join(words)})"


def _more_than_input(source: dict[str, Any]) -> bool:
    """Tell whether other tables were asked for than the input table alone; older records name none."""
    return source.get("tables", "input") != "input"
