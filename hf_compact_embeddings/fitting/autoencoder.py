"""The direction-aware autoencoder: codes and a decoder trained so that decoded rows keep their direction."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..modeling.errors import CompactEmbeddingsError, config_error
from ..progress import steps
from .direction_loss import DirectionLoss
from .factorization import (
    Factors,
    HiddenLayer,
    check_rank,
    check_weights,
    direction_axes,
    has_direction,
    mark_zero_rows,
    project_rows,
    row_chunks,
    row_norms,
)
from .reproducible import product_over_rows, total

# Of codes next to the rows' norm: units that see still smaller ones would need weights that float16 cannot hold.
_SMALLEST_SPREAD = 1e-3
_TINY = torch.finfo(torch.float32).tiny

Watch = Callable[[str, Factors], None]


class FitDivergedError(CompactEmbeddingsError, ArithmeticError):
    """The loss of a fit is no longer a number."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AutoencoderOptions:
    """How to train. The defaults are our own; `PAPER_PRESET` is the paper's recipe.

    Attributes:
        start: "axes": the closed form, after which each row's code is trained for itself; "random": a linear
            encoder and decoder from random values, as in the paper.
        reweighting_rounds: rounds of the closed form after the first; see `direction_axes`.
        loss: the coefficients.
        first_exponent: the power term's exponent at first.
        last_exponent: and from epoch `exponent_epochs` on; it falls linearly between.
        exponent_epochs: how many epochs that takes.
        epochs: passes over the table; None: 10, or 30 with a hidden layer, which has more to learn.
        batch_rows: rows in a batch.
        learning_rate: of Adam, for the decoder (and the encoder).
        code_step: for codes trained for themselves, the step in parts of a Newton step along the gradient.
        halve_every: epochs after which the steps halve; 0: they fall to zero along a cosine instead.
        hidden_width: H, the units of the decoder's non-linear part; 0: a linear decoder. Needs "axes".
        unit_scale: whether to train on the table scaled to a mean row norm of 1, so that learning rates and
            coefficients mean the same for every table.
    """

    start: Literal["axes", "random"] = "axes"
    reweighting_rounds: int = 2
    loss: DirectionLoss = DirectionLoss(power=0.0, rmse=1.0)
    first_exponent: float = 1.0
    last_exponent: float = 0.1
    exponent_epochs: int = 20
    epochs: int | None = None
    batch_rows: int = 2048
    learning_rate: float = 1e-3
    code_step: float = 1.0
    halve_every: int = 0
    hidden_width: int = 0
    unit_scale: bool = True

    def __post_init__(self) -> None:
        """Check the choices that no run could make sense of."""
        if self.start not in ("axes", "random"):
            raise config_error("start", self.start, "allowed are 'axes', 'random'")
        if self.hidden_width < 0 or (self.hidden_width and self.start == "random"):
            raise config_error("hidden_width", self.hidden_width, "it must be 0, or positive with start='axes'")
        if self.batch_rows < 1:
            raise config_error("batch_rows", self.batch_rows, "it must be at least 1")
        if self.start == "axes" and not (self.loss.cosine or self.loss.rmse):
            raise config_error("loss", self.loss, "with start='axes', cosine or rmse must be above 0")

    @property
    def passes(self) -> int:
        """Passes over the table."""
        if self.epochs is None:
            return 30 if self.hidden_width else 10
        return self.epochs

    def exponent(self, epoch: int) -> float:
        """Return the power term's exponent in an epoch, counted from 0."""
        done = min(1.0, epoch / self.exponent_epochs) if self.exponent_epochs else 1.0
        return self.first_exponent + (self.last_exponent - self.first_exponent) * done

    def step_factor(self, epoch: int, progress: float) -> float:
        """Return what to multiply all steps by: in an epoch, counted from 0, with that share of it done."""
        if self.halve_every:
            return 0.5 ** (epoch // self.halve_every)
        return 0.5 * (1 + math.cos(math.pi * (epoch + progress) / self.passes))


PAPER_PRESET = AutoencoderOptions(
    start="random", loss=DirectionLoss(), epochs=30, batch_rows=32, halve_every=4, unit_scale=False
)


def fit_autoencoder(
    table: Tensor,
    rank: int,
    options: AutoencoderOptions | None = None,
    weights: Tensor | None = None,
    seed: int = 0,
    device: torch.device | None = None,
    watch: Watch | None = None,
) -> Factors:
    """Fit factors that keep the directions of the rows.

    Args:
        table: (V, D). On its own device it is not copied; else once, to `device`.
        rank: k.
        options: how to train.
        weights: what each row's loss counts (V,), e.g. a power of token frequency, or None for equal weights.
        seed: of all random choices.
        device: where to compute; by default where the table is.
        watch: called with a name and the factors after each round of the start and each epoch.

    Raises:
        FitDivergedError: if the loss becomes NaN or infinite; it says at which epoch.
    """
    check_rank(rank, table.shape[1])
    options = AutoencoderOptions() if options is None else options
    table = table.detach().to(device)
    trainer = _Trainer(table, rank, options, weights, seed)
    trainer.start(watch)
    passes = options.passes if trainer.active.numel() else 0
    for epoch in steps(range(passes), "Training the autoencoder"):
        loss = float(trainer.run_epoch(epoch))
        if not math.isfinite(loss) or not trainer.is_finite():
            raise FitDivergedError(f"The autoencoder diverged in epoch {epoch + 1} of {passes}: its loss is {loss}.")
        if watch is not None:
            watch(f"epoch {epoch + 1}", trainer.factors())
    return trainer.factors()


class _Trainer:
    """The parameters of a fit, in the trainer's own scale, and the steps on them.

    Gradients are written out: next to products this small, recording a graph would double the time.
    """

    def __init__(
        self, table: Tensor, rank: int, options: AutoencoderOptions, weights: Tensor | None, seed: int
    ) -> None:
        self.table, self.rank, self.options = table, rank, options
        self.device = table.device
        self.generator = torch.Generator().manual_seed(seed)
        self.norms = row_norms(table)
        self.active = has_direction(self.norms).nonzero().squeeze(1)
        self.unit = 1.0
        if options.unit_scale and self.active.numel():
            self.unit = float(total(self.norms[self.active])) / self.active.numel()
        self.weights = None if weights is None else check_weights(weights, table).to(self.norms)
        self.encoder: tuple[Tensor, Tensor] | None = None
        self.codes = torch.empty(0)
        self.decoder: list[Tensor] = []
        self.optimizer: torch.optim.Optimizer | None = None

    def start(self, watch: Watch | None) -> None:
        """Set the parameters to where training starts from."""
        if self.options.start == "random":
            self._start_random()
        else:
            self._start_on_axes(watch)
        parameters = self.decoder + list(self.encoder or ())
        self.optimizer = torch.optim.Adam(parameters, lr=self.options.learning_rate, fused=True)

    def _start_random(self) -> None:
        width, rank = self.table.shape[1], self.rank

        def uniform(*shape: int, fan_in: int) -> Tensor:
            values = torch.rand(*shape, generator=self.generator)
            return ((2 * values - 1) / math.sqrt(fan_in)).to(self.device)

        self.encoder = (uniform(width, rank, fan_in=width), uniform(rank, fan_in=width))
        self.decoder = [uniform(rank, width, fan_in=rank), uniform(width, fan_in=rank)]

    def _start_on_axes(self, watch: Watch | None) -> None:
        rounds = direction_axes(self.table, self.rank, self.weights, self.options.reweighting_rounds)
        for done, (axes, centre) in enumerate(rounds):
            if watch is not None:
                watch(f"axes {done}", Factors(project_rows(self.table, axes, centre, self.norms), axes, centre))
        self.codes = project_rows(self.table, axes, centre, self.norms).div_(self.unit)
        self.decoder = [axes.clone(), centre / self.unit]
        hidden_width = self.options.hidden_width
        if hidden_width:
            # Random units that see codes of unit size, and add nothing yet: the start stays the closed form.
            spread = (total(self.codes.square()) / len(self.codes)).sqrt().float().clamp_(min=_SMALLEST_SPREAD)
            units = torch.randn(self.rank, hidden_width, generator=self.generator).to(self.device)
            self.decoder += [
                units / spread.unsqueeze(1) / math.sqrt(self.rank),
                torch.zeros(hidden_width, device=self.device),
                torch.zeros(hidden_width, self.table.shape[1], device=self.device),
            ]

    def run_epoch(self, epoch: int) -> Tensor:
        """Visit every row that is not zero once, in random order, and return the mean loss ()."""
        order = self.active[torch.randperm(len(self.active), generator=self.generator).to(self.device)]
        batches = order.split(self.options.batch_rows)
        total = torch.zeros((), device=self.device)
        for number, index in enumerate(batches):
            factor = self.options.step_factor(epoch, number / len(batches))
            total += self._step(index, self.options.exponent(epoch), factor) * (len(index) / len(order))
        return total

    def _step(self, index: Tensor, exponent: float, factor: float) -> Tensor:
        """Take one step on the rows `index` (n,) and return their loss before it ()."""
        rows = self.table.index_select(0, index).float()
        norms = self.norms.index_select(0, index).unsqueeze(1)
        if self.unit != 1.0:
            rows, norms = rows.div_(self.unit), norms.div_(self.unit)
        codes = self.codes.index_select(0, index) if self.encoder is None else self._encode(rows)
        decoded, activation = self._decode(codes)
        shares = self._shares(index)
        value, gradient, curvature = self.options.loss.value_and_gradient(decoded, rows, norms, shares, exponent)
        code_gradient = self._set_decoder_gradients(codes, activation, gradient, shares)
        if self.encoder is not None:
            weight, bias = self.encoder
            code_gradient *= shares
            weight.grad, bias.grad = product_over_rows(rows, code_gradient), code_gradient.sum(dim=0)
        else:
            # How far the decoded row moves turns the curvature there into the curvature along the step.
            moved = self._derivative(code_gradient, activation).square().sum(dim=1, keepdim=True)
            length = code_gradient.square().sum(dim=1, keepdim=True)
            step = length.div_(curvature.mul_(moved).clamp_(min=_TINY)).mul_(self.options.code_step * factor)
            self.codes.index_copy_(0, index, codes.addcmul_(code_gradient, step, value=-1.0))
        assert self.optimizer is not None
        self.optimizer.param_groups[0]["lr"] = self.options.learning_rate * factor
        self.optimizer.step()
        return value

    def _encode(self, rows: Tensor) -> Tensor:
        assert self.encoder is not None
        return torch.addmm(self.encoder[1], rows, self.encoder[0])

    def _decode(self, codes: Tensor) -> tuple[Tensor, Tensor | None]:
        decoded = torch.addmm(self.decoder[1], codes, self.decoder[0])
        if not self.options.hidden_width:
            return decoded, None
        activation = F.elu(torch.addmm(self.decoder[3], codes, self.decoder[2]))
        return decoded.addmm_(activation, self.decoder[4]), activation

    def _derivative(self, change: Tensor, activation: Tensor | None) -> Tensor:
        """Return how the decoded rows change (n, D) with a change of the codes (n, k)."""
        moved = change @ self.decoder[0]
        if activation is not None:
            moved.addmm_((change @ self.decoder[2]).mul_(_elu_slope(activation)), self.decoder[4])
        return moved

    def _set_decoder_gradients(
        self, codes: Tensor, activation: Tensor | None, gradient: Tensor, shares: Tensor
    ) -> Tensor:
        """Set the decoder's gradients, and return that of the codes (n, k) before the shares."""
        self.decoder[0].grad = product_over_rows(codes * shares, gradient)
        self.decoder[1].grad = product_over_rows(shares, gradient).squeeze(0)
        code_gradient = gradient @ self.decoder[0].T
        if activation is not None:
            self.decoder[4].grad = product_over_rows(activation * shares, gradient)
            inner = (gradient @ self.decoder[4].T).mul_(_elu_slope(activation))
            code_gradient.addmm_(inner, self.decoder[2].T)
            self.decoder[2].grad = product_over_rows(codes * shares, inner)
            self.decoder[3].grad = product_over_rows(shares, inner).squeeze(0)
        return code_gradient

    def _shares(self, index: Tensor) -> Tensor:
        if self.weights is None:
            return torch.full((len(index), 1), 1 / len(index), device=self.device)
        weights = self.weights.index_select(0, index).unsqueeze(1)
        return weights / weights.sum().clamp(min=torch.finfo(weights.dtype).tiny)

    def is_finite(self) -> bool:
        """Whether the last step left all parameters finite."""
        return all(bool(tensor.isfinite().all()) for tensor in (*self.decoder, *(self.encoder or ()), self.codes))

    def factors(self) -> Factors:
        """Return copies of the parameters in the table's own scale."""
        if self.encoder is None:
            codes = self.codes * self.unit
        else:
            codes = torch.cat([self._encode(rows / self.unit) for _, rows in row_chunks(self.table)]) * self.unit
        hidden = None
        if self.options.hidden_width:
            weight, bias, decoder = self.decoder[2:]
            hidden = HiddenLayer(weight / self.unit, bias.clone(), decoder * self.unit)
        codes = mark_zero_rows(codes, self.norms)
        return Factors(codes, self.decoder[0].clone(), self.decoder[1] * self.unit, hidden)


def _elu_slope(activation: Tensor) -> Tensor:
    """Return ELU's slope where it has the value `activation`: 1 above zero, the value + 1 below."""
    return activation.clamp(max=0.0).add_(1.0)
