"""Ways to damage what a checkpoint holds: values of its configuration, its tensors, and the bytes of its files."""

from __future__ import annotations

import copy
import math
import random
from typing import Any

import torch

Tensors = dict[str, torch.Tensor]

_NUMBERS = (
    *(-1, 0, 1, 2, 3, 7, 8, 9, 16, 17, 64, 127, 255, 256, 1 << 16, 1 << 24, (1 << 31) - 1, 1 << 31, (1 << 31) + 1),
    *(1 << 32, (1 << 53) + 1, (1 << 63) - 1, 1 << 63, 1 << 64, 10**10, 10**30, 10**400, -(1 << 31), -(10**30)),
    *(0.0, -0.0, 0.5, 1.5, 1e-300, 1e30, 1e308, -1e308, math.nan, math.inf, -math.inf),
)
_OTHERS = (
    *(None, True, False, "", "a", "8", "1.5MB", "9" * 400, "float32", "bfloat16", "float16", "coded", "int8", "emb"),
    *("text", "vocabulary", "cluster", "dispersed", "random", "lsh", "\x00", "é" * 9, [], {}, [None], [[]], {"a": 1}),
    *([-1], [0], [1], ["a"], [0.5], [1, 1], [1 << 31] * 3, [10**30], [True], [0] * 100_000, [1] * 70, [-8, 16]),
)
_FLOATS = (0.0, -1.0, 1.0, math.nan, math.inf, -math.inf, 1e-40, 6e-8, 65504.0, 1e9, 1e18, 1e30, 3e38, -3e38)
_DTYPES = (
    *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool),
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
)


def _places(value: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the places of all values inside a JSON value, the value itself among them."""
    inside = value.items() if isinstance(value, dict) else enumerate(value[:50]) if isinstance(value, list) else ()
    return [place, *(found for key, part in inside for found in _places(part, (*place, key)))]


def _other_value(draw: random.Random, value: Any) -> Any:
    """Return a value beside another one, or anything else."""
    kind = draw.randrange(5)
    if isinstance(value, bool):
        return not value if kind < 2 else draw.choice(_NUMBERS + _OTHERS)
    if isinstance(value, int) and kind < 3:
        return draw.choice((value + 1, value - 1, 2 * value, value // 2, -value, value + 8, float(value), str(value)))
    if isinstance(value, list) and value and kind < 4:
        return _other_list(draw, value)
    return copy.deepcopy(draw.choice(_NUMBERS if kind < 2 else _OTHERS))


def _other_list(draw: random.Random, value: list[Any]) -> list[Any]:
    changed = list(value)
    place, other = draw.randrange(len(value)), draw.randrange(len(value))
    kind = draw.randrange(6)
    if kind == 0:
        del changed[place]
    elif kind == 1:
        changed.insert(place, draw.choice((0, value[other], draw.choice(_NUMBERS))))
    elif kind == 2:
        changed[place], changed[other] = changed[other], changed[place]
    elif kind == 3 and all(type(number) is int for number in value):
        # The sum stays.
        by = draw.choice((1, 8, 60, 1 << 31, 10**12))
        changed[place] += by
        changed[other] -= by
    elif kind == 4:
        changed = changed * draw.choice((0, 2, 40))
    else:
        changed[place] = _other_value(draw, value[place])
    return changed


def change_json(draw: random.Random, value: Any) -> Any:
    """Return a JSON value with one change somewhere inside."""
    changed = copy.deepcopy(value)
    place = draw.choice([place for place in _places(changed) if place] or [()])
    if not place:
        return _other_value(draw, changed)
    home = changed
    for key in place[:-1]:
        home = home[key]
    kind = draw.randrange(12)
    if kind == 0:
        del home[place[-1]]
    elif kind == 1 and isinstance(home, dict):
        home[draw.choice(("", "flavour", place[-1] + "_", "coded_rows", "method"))] = draw.choice(_NUMBERS + _OTHERS)
    elif kind == 2 and isinstance(home, dict):
        # Another field's value.
        home[place[-1]] = copy.deepcopy(home[draw.choice(list(home))])
    else:
        home[place[-1]] = _other_value(draw, home[place[-1]])
    return changed


def change_tensors(draw: random.Random, tensors: Tensors) -> Tensors:
    """Return tensors with one change: of names, shapes, types or values."""
    changed = dict(tensors)
    name = draw.choice(sorted(tensors))
    kind = draw.randrange(10)
    if kind == 0:
        del changed[name]
    elif kind == 1:
        other = draw.choice(sorted(tensors))
        changed[draw.choice((other, f"{name}_", "flavour", name.rpartition(".")[2], ""))] = changed[name]
    elif kind == 2:
        changed[name] = _other_shape(draw, changed[name])
    elif kind == 3:
        changed[name] = changed[name].to(draw.choice(_DTYPES))
    else:
        changed[name] = _other_values(draw, changed[name])
    return changed


def _other_shape(draw: random.Random, tensor: torch.Tensor) -> torch.Tensor:
    kind = draw.randrange(7)
    if kind == 0 or not tensor.dim():
        return tensor.unsqueeze(0)
    if kind == 1:
        return tensor.flatten()
    if kind == 2:
        return tensor[..., :-1].contiguous()
    if kind == 3:
        return tensor[:0].clone()
    if kind == 4:
        return torch.cat([tensor, tensor[:1]])
    if kind == 5:
        return tensor.movedim(0, -1).contiguous()
    return tensor.flatten()[0].clone() if tensor.numel() else tensor.unsqueeze(-1)


def _other_values(draw: random.Random, tensor: torch.Tensor) -> torch.Tensor:
    changed = tensor.clone()
    if not changed.numel():
        return changed
    flat = changed.view(-1)
    first = draw.randrange(flat.numel())
    count = draw.choice((1, 1, 2, 4, flat.numel()))
    part = flat[first : first + count] if count < flat.numel() else flat
    kind = draw.randrange(4)
    if kind == 0:
        # Bits as a damaged disk leaves them: floats become anything, NaN too.
        raw = part.view(torch.uint8)
        noise = torch.tensor([draw.randrange(256) for _ in range(64)], dtype=torch.uint8)
        raw.copy_(noise[torch.arange(raw.numel()) % 64])
    elif kind == 1:
        raw = part.view(torch.uint8)
        raw[draw.randrange(raw.numel())] ^= 1 << draw.randrange(8)
    elif kind == 2:
        flat.copy_(flat.roll(draw.choice((1, -1, 3))))
    elif tensor.dtype == torch.uint8:
        part.fill_(draw.choice((0, 1, 2, 6, 7, 8, 127, 128, 254, 255)))
    else:
        value = torch.tensor(draw.choice(_FLOATS))
        part.copy_(value if tensor.is_floating_point() else value.nan_to_num(0.0))
    return changed


def change_bytes(draw: random.Random, content: bytes) -> bytes:
    """Return the bytes of a file with a few of them changed, cut off, or added, mostly near its beginning."""
    changed = bytearray(content)
    for _ in range(draw.choice((1, 1, 2, 5))):
        place = draw.randrange(min(len(changed), draw.choice((8, 64, 1024, 1 << 30)))) if changed else 0
        kind = draw.randrange(5)
        if kind == 0:
            del changed[place:]
        elif kind == 1:
            del changed[place : place + draw.choice((1, 2, 8))]
        elif kind == 2:
            changed[place:place] = bytes(draw.randrange(256) for _ in range(draw.choice((1, 4, 9))))
        elif changed:
            changed[place % len(changed)] ^= 1 << draw.randrange(8) if kind == 3 else draw.randrange(1, 256)
    return bytes(changed)
