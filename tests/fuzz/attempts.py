"""One damaged table is loaded and used; what that ends in has a name."""

from __future__ import annotations

import dataclasses
import hashlib
import random
import resource
import time
from typing import Any

import torch

from hf_compact_embeddings.checked_models import require_finite_rows, sizes_of_tensors
from hf_compact_embeddings.modeling.architectures import read_stored_tables
from hf_compact_embeddings.modeling.errors import CheckpointError, CompactConfigError
from hf_compact_embeddings.modeling.structure import CompactEmbedding, structure_class_of

from ..cases import EXTRAS, Case, all_cases, build_structure
from .mutations import Tensors, change_json, change_tensors

# What damage may end in; anything else is a finding.
REFUSED, EQUAL, CHANGED = "refused", "equal", "changed, finite"
ALLOWED = (REFUSED, EQUAL, CHANGED)
REFUSALS = (CheckpointError, CompactConfigError)
# A tiny table takes milliseconds and kilobytes to load: more than this is a bomb.
_MOST_SECONDS, _MOST_BYTES = 2.0, 64 << 20
# Scores with rows beyond this may be infinite, as those of a dense table are.
_LARGE = 1e30


@dataclasses.dataclass(frozen=True)
class Table:
    """A whole table as a checkpoint stores it, and a hash of what it gives."""

    stored: dict[str, Any]
    tensors: Tensors
    rows: int
    width: int
    padding_idx: int | None
    scale: float
    digest: str

    @classmethod
    def of(cls, case: Case, extras: str) -> Table:
        structure = build_structure(case, **EXTRAS[extras]).round_to_storage()
        tensors = {
            name: tensor.detach().to(structure.stored_dtype(name)) for name, tensor in structure.state_dict().items()
        }
        rows, width, padding = structure.num_embeddings, structure.embedding_dim, structure.padding_idx
        return cls(structure.to_dict(), tensors, rows, width, padding, structure.scale, digest_of(structure))


def tables() -> list[tuple[Case, str]]:
    """Return what is damaged: all cases of every method, plain and with everything that a table can have beside."""
    return [(case, extras) for case in all_cases("project", "dense") for extras in ("plain", "everything")]


def digest_of(structure: CompactEmbedding) -> str:
    """Return a hash of all rows, and of some scores and look-ups; raise if they are not finite."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        found = [structure.dense(), structure(torch.arange(min(7, structure.num_embeddings)).unsqueeze(0))]
        if found[0].abs().max() < _LARGE:
            hidden = torch.randn(2, structure.embedding_dim, generator=generator)
            found.append(structure(hidden, project=True))
    if not all(bool(tensor.isfinite().all()) for tensor in found):
        raise ArithmeticError("rows or scores are not finite")
    return hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in found)).hexdigest()


def load(
    stored: Any, tensors: Tensors, rows: int, width: int, padding: int | None = None, scale: float = 1.0
) -> CompactEmbedding:
    """Load a table as a model does: built without values, compared with what is stored, filled, and checked."""
    options, layout = read_stored_tables({"table": stored})["table"]
    structure_class = structure_class_of(options.method)
    with torch.device("meta"), sizes_of_tensors():
        sizes = structure_class.random_layout(options, rows, width) if layout is None else layout
        structure = structure_class(options, sizes, rows, width, padding, scale)
    wanted = structure.state_dict()
    fits = wanted.keys() == tensors.keys() and all(
        tensor.shape == wanted[name].shape and tensor.is_floating_point() == wanted[name].is_floating_point()
        for name, tensor in tensors.items()
    )
    if not fits:
        raise CheckpointError("tensors of other names, shapes or kinds: `test_damaged_checkpoints.py` has these")
    structure.to_empty(device="cpu").load_state_dict(tensors)
    structure.check_values()
    require_finite_rows("table", structure)
    return structure


def mutate(draw: random.Random, table: Table) -> tuple[Any, Tensors, int, int]:
    """Return what is stored of a table, its tensors, rows and width, with one to three changes."""
    stored, tensors, rows, width = table.stored, table.tensors, table.rows, table.width
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        kind = draw.randrange(8)
        if kind < 4:
            stored = change_json(draw, stored)
        elif kind < 7 and tensors:
            tensors = change_tensors(draw, tensors)
        elif draw.random() < 0.5:
            rows = max(1, draw.choice((rows + 1, rows - 1, 2 * rows, 1, 1 << 31, 10**12)))
        else:
            width = max(1, draw.choice((width + 1, width - 1, 2 * width, 1, 3, 1 << 31)))
    return stored, tensors, rows, width


def attempt(table: Table, seed: int) -> str:
    """Load and use the table with the damage of a seed, and return the outcome."""
    stored, tensors, rows, width = mutate(random.Random(seed), table)
    start, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    structure = None
    try:
        structure = load(stored, tensors, rows, width, table.padding_idx, table.scale)
        outcome = EQUAL
    except REFUSALS:
        outcome = REFUSED
    except Exception as error:
        return f"loading ends in {type(error).__name__}: {error}"
    seconds = time.process_time() - start
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    if seconds > _MOST_SECONDS or grown > _MOST_BYTES:
        return f"loading takes {seconds:.1f} s and {grown >> 20} MB"
    if structure is None:
        return outcome
    try:
        return EQUAL if digest_of(structure) == table.digest else CHANGED
    except Exception as error:
        return f"use ends in {type(error).__name__}: {error}"
