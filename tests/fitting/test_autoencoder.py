"""The direction-aware autoencoder: right gradients, the paper's recipe, better defaults, and loud failures."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hf_compact_embeddings.fitting import autoencoder as module
from hf_compact_embeddings.fitting.autoencoder import (
    PAPER_PRESET,
    AutoencoderOptions,
    DirectionLoss,
    FitDivergedError,
    fit_autoencoder,
)
from hf_compact_embeddings.fitting.factorization import fit_svd, measure_fit
from hf_compact_embeddings.modeling.errors import CompactConfigError, CompactEmbeddingsError

PAPER_LOSS = DirectionLoss()
SHORT = AutoencoderOptions(epochs=3, batch_rows=100)


def clustered_table(rows: int = 600, width: int = 32, seed: int = 0) -> Tensor:
    """Return rows around a few centres, scaled at random, off the origin: neither low-rank nor shapeless."""
    generator = torch.Generator().manual_seed(seed)
    axes = torch.randn(width, width, generator=generator) * torch.linspace(1.5, 0.1, width).unsqueeze(1)
    centres = torch.randn(12, width, generator=generator)
    points = centres[torch.randint(0, 12, (rows,), generator=generator)]
    points = (points + 0.6 * torch.randn(rows, width, generator=generator)) @ axes + 0.3
    return points / points.norm(dim=1, keepdim=True) * (0.5 + torch.rand(rows, 1, generator=generator))


def random_weights(rows: int = 600) -> Tensor:
    return torch.rand(rows, generator=torch.Generator().manual_seed(1)) ** 4 + 1e-3


def reference_loss(loss: DirectionLoss, decoded: Tensor, rows: Tensor, shares: Tensor, exponent: float) -> Tensor:
    """Return the loss as the paper writes it, for autograd."""
    value = loss.cosine * (shares * (1 - F.cosine_similarity(decoded, rows, dim=1))).sum()
    value = value + loss.power * (shares * ((decoded - rows).abs() + 1e-10).pow(exponent).mean(1)).sum()
    return value + loss.rmse * (shares * (decoded - rows).square().mean(1)).sum().sqrt()


@pytest.mark.parametrize("loss", [DirectionLoss(), DirectionLoss(1.0, 0.0, 0.0), DirectionLoss(0.3, 0.2, 0.7)])
@pytest.mark.parametrize("exponent", [1.0, 0.4])
def test_gradients_of_the_loss_are_those_of_autograd(loss, exponent):
    rows, decoded = clustered_table(20).double(), clustered_table(20, seed=5).double().requires_grad_()
    shares = random_weights(20).double()
    shares /= shares.sum()
    expected = reference_loss(loss, decoded, rows, shares, exponent)
    (slope,) = torch.autograd.grad(expected, decoded)
    norms = rows.norm(dim=1, keepdim=True)
    value, gradient, _ = loss.value_and_gradient(decoded.detach(), rows, norms, shares.unsqueeze(1), exponent)
    torch.testing.assert_close(value, expected.detach())
    torch.testing.assert_close(gradient * shares.unsqueeze(1), slope)


@pytest.mark.parametrize("options", [SHORT, dataclasses.replace(SHORT, hidden_width=7)])
def test_gradients_of_decoder_and_codes_are_those_of_autograd(options):
    table, weights = clustered_table(50), random_weights(50)
    trainer = module._Trainer(table, 4, options, weights, seed=0)
    trainer.start(None)
    generator = torch.Generator().manual_seed(2)
    for tensor in trainer.decoder:
        tensor += 0.1 * torch.randn(tensor.shape, generator=generator)
    leaves = [tensor.clone().requires_grad_() for tensor in (trainer.codes, *trainer.decoder)]
    codes, decoder, bias, *hidden = leaves
    decoded = codes @ decoder + bias
    if hidden:
        decoded = decoded + F.elu(codes @ hidden[0] + hidden[1]) @ hidden[2]
    rows, shares = table / trainer.unit, weights / weights.sum()
    expected = torch.autograd.grad(reference_loss(options.loss, decoded, rows, shares, 1.0), leaves)

    before = trainer.codes.clone()
    trainer._step(torch.arange(50), exponent=1.0, factor=1.0)
    for tensor, slope in zip(trainer.decoder, expected[1:], strict=True):
        torch.testing.assert_close(tensor.grad, slope, atol=1e-6, rtol=1e-4)
    cosines = F.cosine_similarity(before - trainer.codes, expected[0], dim=1)
    torch.testing.assert_close(cosines, torch.ones(50), atol=1e-4, rtol=0)


def test_the_derivative_of_a_curved_decoder_is_that_of_autograd():
    trainer = module._Trainer(clustered_table(50), 4, dataclasses.replace(SHORT, hidden_width=7), None, seed=0)
    trainer.start(None)
    trainer.decoder[4] += torch.randn(7, 32, generator=torch.Generator().manual_seed(2))
    change = torch.randn(50, 4, generator=torch.Generator().manual_seed(3))
    _, expected = torch.autograd.functional.jvp(lambda codes: trainer._decode(codes)[0], trainer.codes, change)
    _, activation = trainer._decode(trainer.codes)
    torch.testing.assert_close(trainer._derivative(change, activation), expected, atol=1e-5, rtol=1e-4)


def test_the_paper_preset_takes_the_steps_of_modules_and_autograd():
    table, epochs = clustered_table(200), 6
    trainer = module._Trainer(table, 6, PAPER_PRESET, None, seed=0)
    trainer.start(None)
    encoder, decoder = nn.Linear(32, 6), nn.Linear(6, 32)
    with torch.no_grad():
        for layer, (weight, bias) in ((encoder, trainer.encoder), (decoder, trainer.decoder)):
            layer.weight.copy_(weight.T)
            layer.bias.copy_(bias)
    generator = torch.Generator()
    generator.set_state(trainer.generator.get_state())

    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=1e-3)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=4, gamma=0.5)
    for epoch in range(epochs):
        for batch in torch.randperm(200, generator=generator).split(32):
            shares = torch.full((len(batch),), 1 / len(batch))
            loss = reference_loss(
                PAPER_LOSS, decoder(encoder(table[batch])), table[batch], shares, 1.0 - 0.9 * epoch / 20
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()
        trainer.run_epoch(epoch)
    torch.testing.assert_close(trainer.encoder[0], encoder.weight.T.detach(), atol=2e-4, rtol=0)
    torch.testing.assert_close(trainer.decoder[0], decoder.weight.T.detach(), atol=2e-4, rtol=0)
    torch.testing.assert_close(trainer.factors().codes, encoder(table).detach(), atol=1e-3, rtol=0)


def test_the_paper_preset_has_the_papers_numbers():
    assert (PAPER_PRESET.loss.cosine, PAPER_PRESET.loss.power, PAPER_PRESET.loss.rmse) == (0.9975 / 5, 0.0025, 0.0)
    assert (PAPER_PRESET.passes, PAPER_PRESET.batch_rows, PAPER_PRESET.learning_rate) == (30, 32, 1e-3)
    exponents = [PAPER_PRESET.exponent(epoch) for epoch in range(30)]
    assert exponents[0] == 1.0 and exponents[10] == pytest.approx(0.55)
    assert exponents[20:] == pytest.approx([0.1] * 10) and exponents[19] > 0.1
    assert [PAPER_PRESET.step_factor(epoch, 0.9) for epoch in (0, 3, 4, 8, 29)] == [1, 1, 0.5, 0.25, 0.5**7]


def test_the_default_beats_the_paper_preset_and_centred_svd():
    table = clustered_table(2_000)
    ours = measure_fit(table, fit_autoencoder(table, 6))
    papers = measure_fit(table, fit_autoencoder(table, 6, PAPER_PRESET))
    assert PAPER_LOSS.value(ours) < PAPER_LOSS.value(papers)
    assert ours.mean_cosine > max(papers.mean_cosine, measure_fit(table, fit_svd(table, 6)).mean_cosine + 0.001)
    assert ours.relative_mse < papers.relative_mse


def test_training_lowers_the_loss_that_is_asked_for():
    table, weights = clustered_table(), random_weights()
    for loss in (DirectionLoss(1.0, 0.0, 0.0), DirectionLoss(0.0, 0.0, 1.0), DirectionLoss(0.5, 0.5, 0.1)):
        options = AutoencoderOptions(loss=loss, first_exponent=1.0, last_exponent=1.0, unit_scale=False)
        before = fit_autoencoder(table, 5, dataclasses.replace(options, epochs=0), weights)
        after = fit_autoencoder(table, 5, dataclasses.replace(options, epochs=20, batch_rows=200), weights)
        one, other = (loss.value(measure_fit(table, fit, 1.0, weights)) for fit in (before, after))
        assert other < one


@pytest.mark.parametrize("options", [SHORT, dataclasses.replace(PAPER_PRESET, learning_rate=1e-2, epochs=20)])
def test_weights_move_the_fit_to_the_rows_that_count(options):
    table = clustered_table(400, 16)
    # Two halves of the rows in different halves of the columns: four axes serve one of them well, not both.
    table[:200, :8] = 0
    table[200:, 8:] = 0
    weights = torch.where(torch.arange(400) < 200, 1.0, 0.01)
    cosines = F.cosine_similarity(fit_autoencoder(table, 4, options, weights).decode(), table, dim=1)
    assert float(cosines[:200].mean()) > float(cosines[200:].mean()) + 0.2
    cosines = F.cosine_similarity(fit_autoencoder(table, 4, options, weights.flip(0)).decode(), table, dim=1)
    assert float(cosines[200:].mean()) > float(cosines[:200].mean()) + 0.2


def test_rows_without_weight_get_codes_all_the_same():
    table = clustered_table()
    weights = (torch.arange(600) < 500).float()
    factors = fit_autoencoder(table, 8, SHORT, weights)
    cosines = F.cosine_similarity(factors.decode(), table, dim=1)
    assert float(cosines[500:].mean()) > 0.9 * float(cosines[:500].mean())


def test_a_hidden_layer_raises_the_cosine():
    table = clustered_table()
    linear = measure_fit(table, fit_autoencoder(table, 3))
    factors = fit_autoencoder(table, 3, AutoencoderOptions(hidden_width=16, batch_rows=100))
    assert factors.hidden is not None and factors.hidden.weight.shape == (3, 16)
    curved = measure_fit(table, factors)
    assert curved.mean_cosine > linear.mean_cosine + 0.02
    assert curved.relative_mse < linear.relative_mse


@pytest.mark.parametrize("options", [SHORT, dataclasses.replace(SHORT, hidden_width=4)])
def test_the_scale_of_the_table_changes_nothing_but_the_scale(options):
    table = clustered_table()
    factors, scaled = fit_autoencoder(table, 4, options), fit_autoencoder(table * 1024, 4, options)
    torch.testing.assert_close(scaled.decode() / 1024, factors.decode(), atol=1e-3, rtol=0)


@pytest.mark.parametrize("options", [SHORT, dataclasses.replace(PAPER_PRESET, epochs=2)])
def test_zero_rows_decode_to_zero_and_have_no_say(options):
    table = clustered_table()
    table[::7] = 0
    factors = fit_autoencoder(table, 4, options)
    decoded = factors.decode()
    assert not decoded[::7].any() and bool(decoded.isfinite().all())
    kept = torch.arange(600) % 7 != 0
    alone = fit_autoencoder(table[kept], 4, options)
    one, other = (
        measure_fit(table[kept], f).mean_cosine
        for f in (dataclasses.replace(factors, codes=factors.codes[kept]), alone)
    )
    assert one == pytest.approx(other, abs=2e-3)


def test_a_table_of_zeros_decodes_to_zeros():
    for options in (SHORT, PAPER_PRESET):
        assert not fit_autoencoder(torch.zeros(6, 4), 2, options).decode().any()


def test_a_seed_gives_the_same_fit_again_and_another_seed_another():
    table = clustered_table()
    first, again, other = (fit_autoencoder(table, 4, SHORT, seed=seed).codes for seed in (3, 3, 4))
    assert torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_table_is_neither_changed_nor_shared(dtype):
    table = clustered_table().to(dtype)
    kept = table.clone()
    factors = fit_autoencoder(table, 4, SHORT)
    assert torch.equal(table, kept)
    assert factors.codes.dtype == torch.float32


def test_watching_sees_every_round_and_epoch_and_changes_nothing():
    table, seen = clustered_table(), {}
    factors = fit_autoencoder(table, 4, SHORT, watch=lambda name, state: seen.update({name: state}))
    assert list(seen) == ["axes 0", "axes 1", "axes 2", "epoch 1", "epoch 2", "epoch 3"]
    assert torch.equal(seen["epoch 3"].codes, factors.codes)
    assert torch.equal(factors.codes, fit_autoencoder(table, 4, SHORT).codes)


@pytest.mark.parametrize("options", [SHORT, dataclasses.replace(PAPER_PRESET, epochs=3)])
def test_a_fit_that_diverges_says_at_which_epoch(options):
    wild = dataclasses.replace(options, learning_rate=1e30)
    with pytest.raises(FitDivergedError, match="in epoch 1 of 3: its loss is"):
        fit_autoencoder(clustered_table(), 4, wild)
    assert issubclass(FitDivergedError, CompactEmbeddingsError)


def test_the_epoch_that_diverges_is_the_one_that_is_named(monkeypatch):
    whole_epoch = module._Trainer.run_epoch

    def spoiled(self: module._Trainer, epoch: int) -> Tensor:
        return whole_epoch(self, epoch) + (float("nan") if epoch == 1 else 0.0)

    monkeypatch.setattr(module._Trainer, "run_epoch", spoiled)
    with pytest.raises(FitDivergedError, match="in epoch 2 of 3: its loss is nan"):
        fit_autoencoder(clustered_table(), 4, SHORT)


@pytest.mark.parametrize("rank", [0, -3, 32, 99])
def test_a_rank_out_of_range_is_refused(rank):
    with pytest.raises(CompactConfigError, match="from 1 to 31"):
        fit_autoencoder(clustered_table(), rank)


@pytest.mark.parametrize("start", ["axes", "random"])
def test_what_is_not_finite_is_refused(start):
    table = clustered_table()
    table[8, 1] = float("nan")
    with pytest.raises(CompactConfigError, match="row 8"):
        fit_autoencoder(table, 4, AutoencoderOptions(start=start))
    with pytest.raises(CompactConfigError, match="`weights`"):
        fit_autoencoder(clustered_table(), 4, AutoencoderOptions(start=start), torch.full((600,), float("inf")))


@pytest.mark.parametrize(
    "given",
    [
        {"start": "svd"},
        {"hidden_width": -1},
        {"hidden_width": 4, "start": "random"},
        {"batch_rows": 0},
        {"loss": DirectionLoss(cosine=0.0, power=1.0, rmse=0.0)},
    ],
)
def test_options_that_make_no_sense_are_refused(given):
    with pytest.raises(CompactConfigError, match=f"`{next(iter(given))}`"):
        AutoencoderOptions(**given)


@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf")])
def test_coefficients_that_make_no_sense_are_refused(value):
    with pytest.raises(CompactConfigError, match="`rmse`"):
        DirectionLoss(rmse=value)
