"""The direction-aware loss, with its gradient written out."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from ..modeling.errors import config_error
from .factorization import POWER_EPSILON, FitMeasures

_SMALLEST_NORM = 1e-8
_LEAST_COSINE = 0.05


@dataclasses.dataclass(frozen=True)
class DirectionLoss:
    """The coefficients of the loss: cosine · (1 - cos) + power · mean |ê - e|^exponent + rmse · RMSE.

    The defaults are the paper's (RepL4NLP 2021).
    """

    cosine: float = 0.9975 / 5
    power: float = 0.0025
    rmse: float = 0.0

    def __post_init__(self) -> None:
        """Check that the coefficients are numbers that a loss can have."""
        for name in ("cosine", "power", "rmse"):
            if not 0.0 <= getattr(self, name) < math.inf:
                raise config_error(name, getattr(self, name), "it must be a finite number of at least 0")

    def value(self, measures: FitMeasures) -> float:
        """Return the loss over all rows that were measured."""
        return self.cosine * (1 - measures.mean_cosine) + self.power * measures.mean_power + self.rmse * measures.rmse

    def value_and_gradient(
        self, decoded: Tensor, rows: Tensor, norms: Tensor, shares: Tensor, exponent: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the loss of a batch, its gradient for the decoded rows before their shares, and its curvature.

        Args:
            decoded: (n, D).
            rows: what they should be (n, D).
            norms: the norms of `rows` (n, 1), none zero.
            shares: what each row counts (n, 1), in sum 1.
            exponent: of the power term.

        Returns:
            The loss (); (n, D) whose row i, times share i, is the gradient of the loss for decoded row i; and about
            its second derivative across that row (n, 1), from the cosine and the RMSE.
        """
        lengths = torch.linalg.vector_norm(decoded, dim=1, keepdim=True).clamp_(min=_SMALLEST_NORM)
        scale = (lengths * norms).reciprocal_()
        cosines = torch.linalg.vecdot(decoded, rows).unsqueeze(1) * scale
        value = self.cosine * (shares * (1 - cosines)).sum()
        gradient = rows * (scale * -self.cosine)
        gradient.addcmul_(decoded, cosines / lengths.square() * self.cosine)
        curvature = self.cosine * cosines.clamp(min=_LEAST_COSINE) / lengths.square()
        if self.power or self.rmse:
            error = decoded - rows
            width = rows.shape[1]
        if self.rmse:
            mean_square = (shares * error.square().mean(dim=1, keepdim=True)).sum()
            rmse = mean_square.sqrt().clamp_(min=_SMALLEST_NORM)
            value += self.rmse * rmse
            gradient.addcmul_(error, self.rmse / (width * rmse))
            curvature += self.rmse / (width * rmse)
        if self.power:
            size = error.abs().add_(POWER_EPSILON)
            slope = size.pow(exponent - 1)
            value += self.power * (shares * torch.linalg.vecdot(slope, size).unsqueeze(1)).sum() / width
            gradient.addcmul_(slope, error.sign_(), value=self.power * exponent / width)
        return value, gradient, curvature
