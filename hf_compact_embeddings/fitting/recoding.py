"""Choosing codes anew: the nearest ones to given rows, while a structure's floats and shape stay as they are."""

from __future__ import annotations

import dataclasses
from typing import Self

import torch
from torch import Tensor

from ..modeling.structure import CompactEmbedding
from ..modeling.tiered import TieredEmbedding
from .source import recoder_of


@dataclasses.dataclass(frozen=True)
class StoredAxes:
    """The axes of a structure as they are now, and the way to them.

    Attributes:
        project: takes rows less their mean to coordinates times lengths (D, r).
        lengths: what an error on each axis weighs (r,).
        turned: takes errors of such coordinates to errors as long as they cost (r, ·).
    """

    project: Tensor
    lengths: Tensor
    turned: Tensor

    @classmethod
    def of(cls, structure: TieredEmbedding) -> Self:
        """Read the axes of a structure.

        Where the fit minimised plain distance, axes of other lengths weigh as much as their lengths; in a metric of
        its own, which is not stored, equal steps on all axes cost the same by the choice of the axes.
        """
        axes = structure.axes().detach().double()
        if structure.config.metric != "plain":
            lengths, turned = torch.ones_like(axes[:, 0]), torch.eye(len(axes), device=axes.device)
        else:
            lengths = axes.norm(dim=1)
            # Stored axes are not quite at right angles.
            turned = (axes / lengths.clamp(min=1e-30).unsqueeze(1)).float()
        return cls(torch.linalg.pinv(axes) * lengths, lengths.float(), turned)

    def coordinates(self, rows: Tensor, mean: Tensor) -> Tensor:
        """Return the coordinates times lengths (n, r), float64, of rows (n, D) with a mean (D,)."""
        return (rows.double() - mean.detach().double()) @ self.project


def movable_rows(structure: CompactEmbedding) -> Tensor:
    """Tell which coded rows are read from their codes (n,): not those kept exactly, nor a masked padding row."""
    movable = torch.ones(structure.coded_rows, dtype=torch.bool, device=structure.device)
    exact = structure.private_id_list()
    movable[exact[exact < structure.coded_rows]] = False
    padding = structure.padding_idx
    if structure.config.mask_padding and padding is not None and padding < structure.coded_rows:
        movable[padding] = False
    return movable


@torch.no_grad()
def recode(structure: CompactEmbedding, rows: Tensor) -> int:
    """Give each coded row of a structure the codes nearest to a row of `rows` (n, D); returns how many rows moved."""
    recoder = recoder_of(structure)
    assert recoder is not None
    return int((recoder(structure, rows) & movable_rows(structure)).sum())
