"""What huggingface.co refuses in the metadata of a model card."""

from __future__ import annotations

import re
from typing import Any

import yaml

_STRINGS = ("library_name", "pipeline_tag", "base_model_relation", "license_name")
_LISTS = ("license", "language", "base_model", "datasets", "metrics", "tags")
_OF_A_RESULT = {"task": ("type",), "dataset": ("type", "name")}


def check_card(content: str) -> list[str]:
    """The errors in a card's metadata."""
    found = re.match(r"\s*---\n(.*?)\n---(\n|\Z)", content, flags=re.DOTALL)
    metadata = yaml.safe_load(found[1]) if found else {}
    if not isinstance(metadata, dict):
        return ["YAML metadata must be an object"]
    errors = [f'"{name}" must be a string' for name in _STRINGS if not isinstance(metadata.get(name, ""), str)]
    for name in _LISTS:
        values = metadata.get(name, [])
        if not isinstance(values, list | str) or not all(isinstance(value, str) for value in values):
            errors.append(f'"{name}" must be a string or an array of strings')
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", str(metadata.get("base_model", "none"))):
        errors.append('"base_model" is not valid. Use a model id from https://hf.co/models.')
    if metadata.get("base_model_relation", "quantized") not in ("adapter", "merge", "quantized", "finetune"):
        errors.append('"base_model_relation" must be one of [adapter, merge, quantized, finetune]')
    for model in metadata.get("model-index", []):
        errors += [] if isinstance(model.get("name"), str) else ['"model-index.name" is required']
        for result in model["results"]:
            errors += _check_result(result)
    return errors


def _check_result(result: dict[str, Any]) -> list[str]:
    parts = {f"{part}.{name}": result[part].get(name) for part, names in _OF_A_RESULT.items() for name in names}
    for metric in result.get("metrics") or [{}]:
        parts |= {f"metrics.{name}": metric.get(name) for name in ("type", "value")}
    return [f'"{name}" of a result is required' for name, value in parts.items() if value is None]
