"""Fit factorized embeddings: the direction-aware autoencoder, or a truncated SVD."""

from __future__ import annotations

import contextlib
import dataclasses

import torch
from torch import Tensor

from ..modeling.errors import CompactConfigError
from ..modeling.structure_factorized import INT8_ZERO, FactorizedConfig, FactorizedEmbedding
from .autoencoder import PAPER_PRESET, AutoencoderOptions, fit_autoencoder
from .factorization import Factors, fit_svd, quantise_rows, row_chunks, with_row_norms
from .methods import Need, empty_structure, register_method
from .source import FitSource
from .spectrum import metric_roots

_LOSS_TERMS = {"cosine": "cosine_loss", "power": "power_loss", "rmse": "rmse_loss"}


def fit_factorized(options: FactorizedConfig, source: FitSource) -> FactorizedEmbedding:
    """Fit codes and decoder to a dense table."""
    structure: FactorizedEmbedding = empty_structure(options, source)
    weights = source.row_weights(options.frequency_power)
    table, back = source.table, None
    if options.metric == "sensitivity":
        root, back = (matrix.float() for matrix in metric_roots(source.metric_for("sensitivity"), table.shape[1]))
        table = torch.empty_like(table, dtype=torch.float32)
        for rows, chunk in row_chunks(source.table):
            torch.matmul(chunk, root.to(chunk.device), out=table[rows])
    if options.fit == "svd":
        factors = fit_svd(table, structure.layout.rank, weights, device=source.device)
    else:
        settings = autoencoder_options(options)
        factors = fit_autoencoder(table, structure.layout.rank, settings, weights, source.seed, source.device)
    if back is not None:
        factors = _times(factors, back.to(factors.codes.device))
    if options.restore_norm:
        factors = with_row_norms(source.table, factors)
    _store(structure, factors)
    return structure


def autoencoder_options(config: FactorizedConfig) -> AutoencoderOptions:
    """Return the training options of a configuration: a preset with the loss coefficients that are set."""
    options = PAPER_PRESET if config.preset == "paper" else AutoencoderOptions(hidden_width=config.hidden_width)
    given = {term: getattr(config, field) for term, field in _LOSS_TERMS.items() if getattr(config, field) is not None}
    return dataclasses.replace(options, loss=dataclasses.replace(options.loss, **given))


def _times(factors: Factors, matrix: Tensor) -> Factors:
    """Return factors that decode to the rows times a matrix (D, D)."""
    hidden = factors.hidden
    return dataclasses.replace(
        factors,
        decoder=factors.decoder @ matrix,
        bias=None if factors.bias is None else factors.bias @ matrix,
        hidden=None if hidden is None else dataclasses.replace(hidden, decoder=hidden.decoder @ matrix),
    )


def _store(structure: FactorizedEmbedding, factors: Factors) -> None:
    tensors = {"decoder": factors.decoder, "bias": factors.bias, "row_scales": factors.row_scales}
    if factors.hidden is not None:
        tensors["hidden_weight"] = factors.hidden.weight
        tensors["hidden_bias"] = factors.hidden.bias
        tensors["hidden_decoder"] = factors.hidden.decoder
    if structure.layout.int8_codes:
        codes, tensors["code_scales"] = quantise_rows(factors.codes)
        structure.code_bytes.copy_((codes.to(torch.int16) + INT8_ZERO).to(torch.uint8))
    else:
        tensors["codes"] = factors.codes
    with torch.no_grad():
        for name, value in tensors.items():
            if value is not None:
                structure.get_parameter(name).copy_(value)


def _candidates(rows: int, width: int, max_bytes: int) -> list[FactorizedConfig]:
    """Return the highest rank that fits, in float16 and in 8 bits; by SVD, whose error is the least."""
    found = []
    for int8_codes in (False, True) if width > 1 else ():
        with contextlib.suppress(CompactConfigError):
            options = FactorizedConfig(fit="svd", int8_codes=int8_codes)
            found.append(dataclasses.replace(options, rank=options.rank_for_bytes(rows, width, max_bytes)))
    return found


def _needs(options: FactorizedConfig) -> frozenset[Need]:
    return frozenset({"counts", "sensitivity"} if options.metric == "sensitivity" else {"counts"})


register_method(structure=FactorizedEmbedding, fit=fit_factorized, needs=_needs, candidates=_candidates)
