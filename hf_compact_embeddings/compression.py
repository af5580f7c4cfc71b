"""compress() and decompress(): a model in, a model out."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from . import effort as efforts
from .checkpoints import load_dense
from .effort import Effort
from .evidence import Evidence, gather, read_texts
from .evidence.origin import origin_of
from .fitting import fit_structure, method_of
from .fitting.methods import Need, make_config, private_row_bytes
from .modeling.architectures import InputTable, find_input_table
from .modeling.errors import CompactConfigError, UnsupportedArchitectureError
from .modeling.modeling_compact import CompactModelMixin, config_class, model_class
from .modeling.options import StructureConfig
from .modeling.structure import CompactEmbedding
from .modeling.transformers_internals import native_class
from .planning import plan_for
from .progress import other_bars_hidden, report, stage
from .transformers_internals import attention_of, set_attention

# What rows take that are kept exactly since a head would overrate them: more would cost the others more than it helps.
# It is taken from the others, of which another few may go wrong for it.
_SHARE_OF_OVERRATED = 0.02
_ROUNDS_OF_OVERRATED = 3


def compress(
    model: PreTrainedModel | str | Path,
    method: str | StructureConfig | None = None,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    token_counts: Tensor | Literal["words", "tokenizer", "uniform"] | None = None,
    texts: Any = None,
    languages: Iterable[str] | None = None,
    auto_class: Any = None,
    seed: int = 0,
    device: str | torch.device | None = None,
    effort: Effort = "balanced",
    minutes: float | None = None,
    verbose: bool = False,
    **options: Any,
) -> PreTrainedModel:
    """Return a compact copy of a model; the model itself is not changed and shares no memory with the copy.

    Args:
        model: a Transformers model, or a Hub id or folder of one.
        method: a method's name, with its options as keywords; or a configuration; or None, to let `plan()` choose
            within `ratio=`, `max_bytes=` or `bits_per_weight=`.
        tokenizer: the model's tokenizer. With it, frequent tokens are fitted more closely, errors weigh by what they do
            to the model, and special tokens are kept exactly.
        token_counts: how often each token occurs (V,), or where that is to be taken from: "words", the frequencies of
            words in `languages`; "tokenizer", as far as that itself tells; "uniform", all alike. By default from
            `texts`, else from words where the package `wordfreq` is installed, else from the tokenizer. Where a head
            scores through the table, rows weigh half by this and half by how often the model might give them.
        texts: texts like those that the model will read: strings, rows, files, folders, or the name of a data set of
            the Hub, as `read_texts` takes them. Without them the model reads texts that are made.
        languages: codes of the languages whose words count, as "de"; by default all that the vocabulary shows.
        auto_class: the Auto class to load a Hub id or folder with; by default the class that its
            configuration names.
        seed: of all random choices in the fit.
        device: where to fit; by default a GPU where there is one.
        effort: "fast" reads no texts and searches less. "balanced" fits with care. "best" also calibrates the
            fit against the model, with all weights, of a causal model with its norms, on `texts` or on texts that are
            made. Some of them are held out
            and say how far to go, so that on these it never ends worse than the fit. Options that are given hold.
        minutes: that the whole may take with "best"; by default 10.
        verbose: say on stderr what goes on, and at the end what the time was spent on.
        options: fields of the method's configuration; where `plan()` chooses, the budget and what holds in any case.
    """
    began = time.perf_counter()
    # 1. Check what is asked for, before anything slow: effort, options, and whether there are texts.
    config = None if method is None else _method_config(method, options, effort)
    efforts.require_sense(effort, minutes, tokenizer, options.get("init") if config is None else config.init)
    texts = None if texts is None else read_texts(texts)
    with report(aloud=verbose, table=verbose):
        # 2. Find the table in the model, and everything that is tied to it.
        if isinstance(model, str | Path):
            with stage("Loading the model"):
                model = load_dense(model, auto_class)
        compact_class, table = _require_compressible(model)
        # 3. Gather what is known about its rows.
        evidence = gather(
            model,
            table,
            tokenizer=tokenizer,
            token_counts=token_counts,
            texts=texts,
            languages=languages,
            seed=seed,
            device=device,
        )
        # 4. Choose a configuration where only a budget was given, and fit.
        if config is None:
            with stage("Planning"):
                config = plan_for(evidence, cheap=efforts.cheap_settings(effort), **options)[0].config
        from_scratch = config.init == "random"
        needs = method_of(config).needs(config)
        with stage("Fitting"):
            structure = _fitted(config, evidence, needs)
        # 5. Put the structure and copies of the other weights together, note what the table was made from, and with
        # time to spend train both.
        with stage("Assembling"):
            compact = _assemble(model, compact_class, table, structure)
        compact.config.compact_source = origin_of(
            model,
            config,
            seed,
            tokenizer=tokenizer is not None,
            texts=texts is not None,
            token_counts=token_counts if isinstance(token_counts, str) else token_counts is not None,
            languages=evidence.asked_languages,
            evidence=None if from_scratch else evidence.in_words(needs),
        )
        if effort == "best":
            compact = _calibrated(compact, evidence, minutes, began)
    return compact


def _fitted(config: StructureConfig, evidence: Evidence, needs: frozenset[Need]) -> CompactEmbedding:
    """Fit, and fit again around rows that went so wrong that they must be kept exactly, within the same budget."""
    from_scratch = config.init == "random"

    def fit(also_exact: Tensor | None) -> CompactEmbedding:
        source = evidence.fit_source(
            needs, private_rows=config.private_rows, from_scratch=from_scratch, also_exact=also_exact
        )
        return fit_structure(config, source)

    structure, exact = fit(None), torch.empty(0, dtype=torch.int64)
    rows, width = evidence.rows.shape
    # Without a budget nobody has said that there may be more rows.
    budget = None if from_scratch else config.budget(rows, width)
    most = 0 if budget is None else int(_SHARE_OF_OVERRATED * budget) // private_row_bytes(config, width)
    for _ in range(_ROUNDS_OF_OVERRATED):
        if len(exact) >= most:
            break
        overrated = evidence.overrated_rows(needs, structure, most - len(exact))
        if not overrated.numel():
            break
        exact = torch.cat([exact, overrated]).unique()
        structure = fit(exact)
    return structure


def _method_config(method: str | StructureConfig, options: dict[str, Any], effort: Effort) -> StructureConfig:
    if isinstance(method, str):
        # An unknown method or option is told by what makes the configuration.
        config = make_config(method, **options)
        cheap = efforts.of_fields(efforts.cheap_settings(effort) or {}, type(config))
        config = make_config(method, **{**cheap, **options})
    elif options:
        raise CompactConfigError(f"`{next(iter(options))}` cannot be given beside a configuration: set it there.")
    else:
        config = efforts.with_effort(method, effort)
    return config


def _calibrated(compact: PreTrainedModel, evidence: Evidence, minutes: float | None, began: float) -> PreTrainedModel:
    with stage("Calibrating"):
        # Trainer takes seconds to import.
        from .training.refinement import refine

        return refine(compact, evidence, efforts.DEFAULT_MINUTES if minutes is None else minutes, began)


def _require_compressible(model: PreTrainedModel) -> tuple[type[PreTrainedModel], InputTable]:
    """Return the compact class and the input table of a model; raise if it has none that can be made compact."""
    if isinstance(model, CompactModelMixin):
        raise CompactConfigError(f"`model` is a {type(model).__name__}, which is compact already.")
    compact_class = _compact_class(model)
    table = find_input_table(model)
    _require_true_ties(model, table)
    return compact_class, table


def _compact_class(model: PreTrainedModel) -> type[PreTrainedModel]:
    native = type(model)
    if getattr(transformers, native.__name__, None) is not native:
        raise UnsupportedArchitectureError(
            f"{native.__name__} is no model class of Transformers: looked for it as `transformers.{native.__name__}`."
        )
    return model_class(native)


def _require_true_ties(model: PreTrainedModel, table: InputTable) -> None:
    weight = table.module.weight
    for path in table.tied_paths:
        other = model.get_submodule(path).weight
        if other is not weight and not torch.equal(other, weight):
            raise UnsupportedArchitectureError(
                f"`{path}` is tied to the input table by the configuration, but holds other values: "
                "set `config.tie_word_embeddings = False`, save and load the model, and try again."
            )


def _assemble(
    model: PreTrainedModel,
    compact_class: type[PreTrainedModel],
    table: InputTable,
    structure: CompactEmbedding,
) -> PreTrainedModel:
    """Build the compact model from the structure and copies of the model's other weights."""
    dropped = {f"{path}.weight" for path in (*table.paths, *table.tied_paths)}
    state = {key: value.detach().clone() for key, value in model.state_dict().items() if key not in dropped}
    config = _converted_config(model.config, config_class(type(model.config)))
    config.compact_embeddings = {table.paths[0]: structure.to_dict()}
    with torch.device("meta"):
        home = compact_class(config).input_table_path
    dtype = table.module.weight.dtype
    for key, value in structure.state_dict().items():
        state[f"{home}.{key}"] = value.to(dtype) if value.is_floating_point() else value
    return _load(compact_class, config, state, model)


def _converted_config(config: PreTrainedConfig, target: type[PreTrainedConfig]) -> Any:
    """Copy a configuration into another class of the same architecture."""
    left_out = ("model_type", "auto_map", "architectures", "compact_embeddings", "compact_code", "compact_source")
    fields = {name: value for name, value in copy.deepcopy(config.to_dict()).items() if name not in left_out}
    converted = target.from_dict(fields)
    set_attention(converted, attention_of(config))
    return converted


def _load(
    target: type[PreTrainedModel], config: Any, state: dict[str, Tensor], source: PreTrainedModel
) -> PreTrainedModel:
    """Load a state the way a checkpoint is loaded, and carry over what a checkpoint does not hold."""
    with other_bars_hidden():
        result = target.from_pretrained(None, config=config, state_dict=state, dtype=source.dtype)
    result.to(source.device)
    result.train(source.training)
    result.name_or_path = result.config.name_or_path = source.config.name_or_path
    if source.can_generate():
        result.generation_config = copy.deepcopy(source.generation_config)
    trainable = {name: parameter.requires_grad for name, parameter in source.named_parameters()}
    for name, parameter in result.named_parameters():
        parameter.requires_grad_(trainable.get(name, parameter.requires_grad))
    return result


def decompress(compact: PreTrainedModel) -> PreTrainedModel:
    """Return the native model again, with the decoded rows as its dense table."""
    if not isinstance(compact, CompactModelMixin):
        raise CompactConfigError(f"`compact` is a {type(compact).__name__}, which is not compact.")
    native = native_class(type(compact))
    structure = compact.compact_embedding
    home = compact.input_table_path
    state = {key: value.detach().clone() for key, value in compact.state_dict().items()}
    state = {key: value for key, value in state.items() if not key.startswith(f"{home}.")}
    with torch.no_grad():
        state[f"{home}.weight"] = structure.dense()
    config = _converted_config(compact.config, native.config_class)
    return _load(native, config, state, compact)
