"""Fit factorized embeddings: the direction-aware autoencoder, or a truncated SVD."""

from __future__ import annotations

import dataclasses

import torch

from ..modeling.structure_factorized import FactorizedConfig, FactorizedEmbedding
from .autoencoder import PAPER_PRESET, AutoencoderOptions, fit_autoencoder
from .factorization import Algorithm, Factors, fit_svd, quantise_rows, with_row_norms
from .source import FitSource, empty_structure, fits

_LOSS_TERMS = {"cosine": "cosine_loss", "power": "power_loss", "rmse": "rmse_loss"}


@fits(FactorizedConfig)
def fit_factorized(config: FactorizedConfig, source: FitSource) -> FactorizedEmbedding:
    """Fit codes and decoder to a dense table."""
    structure = empty_structure(config, source)
    assert isinstance(structure, FactorizedEmbedding)
    weights = source.row_weights(config.frequency_power)
    if config.fit == "svd":
        algorithm: Algorithm = "exact" if config.algorithm == "exact" else "gram"
        factors = fit_svd(source.table, structure.rank, weights, algorithm=algorithm, device=source.device)
    else:
        options = autoencoder_options(config)
        factors = fit_autoencoder(source.table, structure.rank, options, weights, source.seed, source.device)
    if config.restore_norm:
        factors = with_row_norms(source.table, factors)
    _store(structure, factors)
    return structure


def autoencoder_options(config: FactorizedConfig) -> AutoencoderOptions:
    """Return the training options of a configuration: a preset with the loss coefficients that are set."""
    options = PAPER_PRESET if config.preset == "paper" else AutoencoderOptions(hidden_width=config.hidden_width)
    given = {term: getattr(config, field) for term, field in _LOSS_TERMS.items() if getattr(config, field) is not None}
    return dataclasses.replace(options, loss=dataclasses.replace(options.loss, **given))


def _store(structure: FactorizedEmbedding, factors: Factors) -> None:
    tensors = {"decoder": factors.decoder, "bias": factors.bias, "row_scales": factors.row_scales}
    if factors.hidden is not None:
        tensors["hidden_weight"] = factors.hidden.weight
        tensors["hidden_bias"] = factors.hidden.bias
        tensors["hidden_decoder"] = factors.hidden.decoder
    if structure.config.int8_codes:
        structure.set_int8_codes(*quantise_rows(factors.codes))
    else:
        tensors["codes"] = factors.codes
    with torch.no_grad():
        for name, value in tensors.items():
            if value is not None:
                structure.get_parameter(name).copy_(value)
