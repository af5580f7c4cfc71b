"""Metadata of model cards: what huggingface.co refuses, and what it reads out of them."""

from __future__ import annotations

import re
from typing import Any

import yaml

FRONT_MATTER = re.compile(r"^\s*---[\r\n]+([\S\s]*?)[\r\n]+---([\r\n]|\Z)")
REQUIRED_OF_A_RESULT = {"task": ("type",), "dataset": ("type", "name")}


def card_metadata(content: str) -> dict[str, Any]:
    """The metadata of a card; empty where it has none or it cannot be read."""
    found = FRONT_MATTER.match(content)
    if found is None:
        return {}
    try:
        metadata = yaml.safe_load(found.group(1))
    except yaml.YAMLError:
        return {}
    return metadata if isinstance(metadata, dict) else {}


def check_card(content: str) -> tuple[list[str], list[str]]:
    """Errors and warnings about a card's metadata."""
    found = FRONT_MATTER.match(content)
    if found is None:
        return [], ["empty or missing yaml metadata in repo card"]
    try:
        metadata = yaml.safe_load(found.group(1))
    except yaml.YAMLError as error:
        return [f"can not parse YAML metadata: {error}"], []
    if metadata is None:
        return [], ["empty or missing yaml metadata in repo card"]
    if not isinstance(metadata, dict):
        return ["YAML metadata must be an object"], []
    return [*_check_fields(metadata), *_check_model_index(metadata.get("model-index"))], []


def _check_fields(metadata: dict[str, Any]) -> list[str]:
    errors = []
    for name in ("library_name", "pipeline_tag", "base_model_relation", "license_name"):
        if name in metadata and not isinstance(metadata[name], str):
            errors.append(f'"{name}" must be a string')
    for name in ("license", "language", "base_model", "datasets", "metrics", "tags"):
        values = metadata.get(name, [])
        values = [values] if isinstance(values, str) else values
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            errors.append(f'"{name}" must be a string or an array of strings')
        elif name == "base_model":
            errors += [
                f'"base_model" with value "{value}" is not valid. Use a model id from https://hf.co/models.'
                for value in values
                if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", value)
            ]
    relation = metadata.get("base_model_relation", "quantized")
    if isinstance(relation, str) and relation not in ("adapter", "merge", "quantized", "finetune"):
        errors.append('"base_model_relation" must be one of [adapter, merge, quantized, finetune]')
    return errors


def _check_model_index(index: object) -> list[str]:
    if index is None:
        return []
    if not isinstance(index, list):
        return ['"model-index" must be an array']
    errors = []
    for i, model in enumerate(index):
        where = f"model-index[{i}]"
        if not isinstance(model, dict):
            errors.append(f'"{where}" must be of type object')
            continue
        if not isinstance(model.get("name"), str):
            errors.append(f'"{where}.name" is required')
        results = model.get("results")
        if not isinstance(results, list):
            errors.append(f'"{where}.results" must be an array')
            continue
        for j, result in enumerate(results):
            errors += _check_result(f"{where}.results[{j}]", result)
    return errors


def _check_result(where: str, result: object) -> list[str]:
    if not isinstance(result, dict):
        return [f'"{where}" must be of type object']
    errors = []
    for part, names in REQUIRED_OF_A_RESULT.items():
        values = result.get(part)
        if not isinstance(values, dict):
            errors.append(f'"{where}.{part}" is required')
            continue
        errors += [f'"{where}.{part}.{name}" is required' for name in names if not values.get(name)]
    metrics = result.get("metrics")
    if not isinstance(metrics, list) or not metrics:
        return [*errors, f'"{where}.metrics" is required']
    for k, metric in enumerate(metrics):
        for name in ("type", "value"):
            if not isinstance(metric, dict) or metric.get(name) is None:
                errors.append(f'"{where}.metrics[{k}].{name}" is required')
    return errors
