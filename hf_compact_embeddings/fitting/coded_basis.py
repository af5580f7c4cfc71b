"""Axes as trellis codes: every axis is a row of entries that all have the same number of bits."""

from __future__ import annotations

import torch
from torch import Tensor

from ..modeling.options import STORAGE_DTYPES
from ..modeling.tiered import TieredEmbedding, basis_entries
from . import trellis


def basis_bytes(bits: tuple[int, ...], width: int) -> int:
    """Return the bytes of coded axes (r, width) with so many bits an entry."""
    return sum(basis_entries(width, count) * count // 8 for count in bits)


@torch.no_grad()
def store_basis(structure: TieredEmbedding, basis: Tensor, bits: tuple[int, ...]) -> None:
    """Store axes (r, D) in a structure: as they are, or coded at `bits` an entry with a gain each."""
    dtype = STORAGE_DTYPES[structure.options.storage_dtype]
    if structure.basis is not None:
        structure.basis.copy_(basis.to(dtype))
        return
    codes: list[Tensor] = [torch.empty(0)] * len(bits)
    gains = torch.zeros(len(bits))
    width = basis.shape[1]
    for count in sorted(set(bits)):
        mine = torch.tensor([axis for axis, other in enumerate(bits) if other == count])
        entries = basis_entries(width, count)
        scale = basis[mine].square().mean(1, keepdim=True).sqrt().clamp(min=1e-30)
        points = torch.nn.functional.pad(basis[mine] / scale, (0, entries - width)).float()
        window = trellis.window_bits_for(entries * count)
        found = trellis.encode(points, [count] * entries, trellis.spread([count] * entries), window)
        read = trellis.decode(found, [count] * entries, window)[:, :width].double()
        gains[mine] = ((read * basis[mine]).sum(1) / read.square().sum(1)).to(dtype).float()
        for axis, row in zip(mine.tolist(), found, strict=True):
            codes[axis] = row[None]
    structure.set_coded_basis(codes, bits, gains)
