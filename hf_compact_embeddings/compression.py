"""compress() and decompress(): a model in, a model out."""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from . import effort as efforts
from .checkpoints import load_dense
from .effort import Effort
from .evidence import Evidence, Texts, gather, read_texts
from .evidence.origin import origin_of
from .evidence.tables import HeadTable, Table, Tables, find_tables, share_of
from .fitting import fit_structure, method_of
from .fitting.methods import Need, make_config, private_row_bytes
from .layers import Layers, require_known, shrink_layers, with_small_layers
from .modeling.architectures import IN_HEAD, UNTIED_HEAD, InputTable, find_head
from .modeling.errors import CompactConfigError, UnsupportedArchitectureError
from .modeling.layers import compact_layers
from .modeling.modeling_compact import CompactModelMixin, config_class, model_class
from .modeling.options import StructureConfig
from .modeling.structure import CompactEmbedding
from .modeling.tied import CompactHead
from .modeling.transformers_internals import native_class
from .planning import plan_for
from .progress import other_bars_hidden, report, stage
from .transformers_internals import attention_of, set_attention

# What rows take that are kept exactly since a head would overrate them: more would cost the others more than it helps.
# It is taken from the others, of which another few may go wrong for it.
_SHARE_OF_OVERRATED = 0.02
_ROUNDS_OF_OVERRATED = 3
# What other libraries wrap around a model, by the names of their classes: how to reach the model in it.
_PARTS_OF_OTHERS = {
    "SentenceTransformer": "give `model[0].model`, and put the result into its place",
    "PeftModel": "give what `model.merge_and_unload()` returns, or `model.get_base_model()` before there are adapters",
}


def compress(
    model: PreTrainedModel | str | Path,
    method: str | StructureConfig | None = None,
    *,
    tables: Tables = "input",
    layers: Layers | None = None,
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
        tables: "input", the input table with everything that is tied to it; "head", an output head that is not tied,
            alone; or "all" of these that the model has: "all" is "input" where the head is tied, or where there is
            none. Method, options and budget hold for each table; `max_bytes` holds for both together. Errors in a head
            weigh by how far they move its scores.
        layers: how the linear layers are stored: "int8", with a scale for each row; "int4", with one for 32 values, so
            that with a tokenizer errors make up for each other; all other floats as "float16" then. With "float16" or
            "bfloat16" all floats are that. Without a method and a budget, `model` may be compact already: its layers
            alone are made small.
        tokenizer: the model's tokenizer. With it, frequent tokens are fitted more closely, errors weigh by what they do
            to the model, and special tokens are kept exactly.
        token_counts: how often each token occurs (V,), or where that is to be taken from: "words", the frequencies of
            words in `languages`; "tokenizer", as far as that itself tells; "uniform", all alike. By default from
            `texts` and words of the languages that they are written in, else from words where the package `wordfreq`
            is installed, else from the tokenizer. Where a head scores through the table, texts count alone, and rows
            weigh half by counts and half by how often the model might give them.
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
    # 1. Check what is asked for, before anything slow: layers, effort, options, and whether there are texts.
    require_known(layers)
    if layers is not None and method is None and not options and isinstance(model, CompactModelMixin):
        known = {"token_counts": token_counts, "texts": texts, "languages": languages, "seed": seed, "device": device}
        return _with_layers(model, layers, tokenizer, effort, verbose, **known)
    config = None if method is None else _method_config(method, options, effort)
    efforts.require_sense(effort, minutes, tokenizer, options.get("init") if config is None else config.init)
    texts = None if texts is None else read_texts(texts)
    with report(aloud=verbose, table=verbose):
        # 2. Find the tables in the model, and everything that is tied to them.
        if isinstance(model, str | Path):
            with stage("Loading the model"):
                model = load_dense(model, auto_class)
        compact_class, found = _require_compressible(model, tables)
        # 3. Gather what is known about its rows.
        evidence = gather(
            model,
            found[0],
            tokenizer=tokenizer,
            token_counts=token_counts,
            texts=texts,
            languages=languages,
            seed=seed,
            device=device,
        )
        # 4. Choose a configuration where only a budget was given, and fit.
        fits = [_fit(evidence.of(table), config, _within(options, found, table), effort, found) for table in found]
        # 5. Put the structures and copies of the other weights together, note what they were made from, and with time
        # to spend train all.
        with stage("Assembling"):
            compact = _assemble(
                model, compact_class, {table: fit.structure for table, fit in zip(found, fits, strict=True)}
            )
        if layers is not None:
            with stage("Fitting the layers"):
                shrink_layers(compact, layers, tokenizer, _texts_for(layers, evidence, effort))
        first = fits[0].config
        # Plans for several tables differ, so that what they were asked for is noted.
        asked = first if config is None and len(fits) == 1 else config
        compact.config.compact_source = origin_of(
            model,
            asked,
            seed,
            asked_for=options if effort == "balanced" else options | {"effort": effort},
            tables=tables,
            layers=layers,
            tokenizer=tokenizer is not None,
            texts=texts is not None,
            token_counts=token_counts if isinstance(token_counts, str) else token_counts is not None,
            languages=evidence.asked_languages,
            evidence=None if first.init == "random" else evidence.in_words(method_of(first).needs(first)),
        )
        if effort == "best":
            compact = _calibrated(compact, evidence, minutes, began)
    return compact


def _with_layers(
    model: CompactModelMixin,
    layers: Layers,
    tokenizer: PreTrainedTokenizerBase | None,
    effort: Effort,
    verbose: bool,
    **known: Any,
) -> PreTrainedModel:
    """Return a copy of a compact model with small layers."""
    with report(aloud=verbose, table=verbose):
        table = InputTable(model.compact_embedding, (model.input_table_path,), ())  # type: ignore[arg-type]
        evidence = gather(model, table, tokenizer=tokenizer, **known)
        with stage("Fitting the layers"):
            compact = with_small_layers(model, layers, tokenizer=tokenizer, texts=_texts_for(layers, evidence, effort))
    if model.config.compact_source is not None:
        compact.config.compact_source = {**model.config.compact_source, "layers": layers}
    return compact


def _texts_for(layers: Layers, evidence: Evidence, effort: Effort) -> Texts | None:
    """Return the texts that tell what layers read, where that is of use."""
    return evidence.readable_texts if layers == "int4" and effort != "fast" else None


@dataclasses.dataclass(frozen=True)
class _Fit:
    """A configuration, and the structure that it gave."""

    config: StructureConfig
    structure: CompactEmbedding


def _fit(
    evidence: Evidence, config: StructureConfig | None, options: Mapping[str, Any], effort: Effort, tables: list[Table]
) -> _Fit:
    """Fit to a table, by a configuration or by what a plan says that holds options, which give a budget."""
    if config is None:
        with stage("Planning"):
            config = plan_for(evidence, cheap=efforts.cheap_settings(effort), **options)[0].config
    elif config.max_bytes is not None:
        config = dataclasses.replace(config, max_bytes=share_of(config.max_bytes, tables, evidence.table))
    with stage("Fitting"):
        return _Fit(config, _fitted(config, evidence, method_of(config).needs(config)))


def _within(options: dict[str, Any], tables: list[Table], table: Table) -> dict[str, Any]:
    """Return the options with which one of several tables takes its share of the bytes for all."""
    if options.get("max_bytes") is None:
        return options
    return options | {"max_bytes": share_of(options["max_bytes"], tables, table)}


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


def _require_compressible(model: PreTrainedModel, tables: Tables) -> tuple[type[PreTrainedModel], list[Table]]:
    """Return the compact class and the tables of a model; raise if it has none that can be made compact."""
    if isinstance(model, CompactModelMixin):
        raise CompactConfigError(f"`model` is a {type(model).__name__}, which is compact already.")
    compact_class = _compact_class(model)
    found = find_tables(model, tables)
    for table in found:
        _require_true_ties(model, table)
    return compact_class, found


def _compact_class(model: PreTrainedModel) -> type[PreTrainedModel]:
    native = type(model)
    for name, part in _PARTS_OF_OTHERS.items():
        if any(base.__name__ == name for base in native.__mro__):
            raise UnsupportedArchitectureError(f"`model` is a {name}, of which a part can be compressed: {part}.")
    if getattr(transformers, native.__name__, None) is not native:
        raise UnsupportedArchitectureError(
            f"{native.__name__} is no model class of Transformers: looked for it as `transformers.{native.__name__}`."
        )
    return model_class(native)


def _require_true_ties(model: PreTrainedModel, table: Table) -> None:
    weight = table.module.weight
    for path in table.tied_paths:
        other = model.get_submodule(path).weight
        if other is not weight and not torch.equal(other, weight):
            raise UnsupportedArchitectureError(
                f"`{path}` is tied to the input table by the configuration, but holds other values: "
                "set `config.tie_word_embeddings = False`, save and load the model, and try again."
            )


def _assemble(
    model: PreTrainedModel, compact_class: type[PreTrainedModel], structures: Mapping[Table, CompactEmbedding]
) -> PreTrainedModel:
    """Build the compact model from structures and copies of the model's other weights."""
    dropped = {f"{path}.weight" for table in structures for path in (*table.paths, *table.tied_paths)}
    state = {key: value.detach().clone() for key, value in model.state_dict().items() if key not in dropped}
    config = _converted_config(model.config, config_class(type(model.config)))
    if getattr(config, "tie_word_embeddings", False) and _has_untied_head(model):
        setattr(config, UNTIED_HEAD, True)
    homes = {table: _home_of(table) for table in structures}
    config.compact_embeddings = {homes[table]: structure.to_dict() for table, structure in structures.items()}
    with torch.device("meta"):
        input_home = compact_class(config).input_table_path
    for table, structure in structures.items():
        home = input_home if isinstance(table, InputTable) else homes[table]
        dtype = table.module.weight.dtype
        for key, value in structure.state_dict().items():
            state[f"{home}.{key}"] = value.to(dtype) if value.is_floating_point() else value
    return _load(compact_class, config, state, model)


def _has_untied_head(model: PreTrainedModel) -> bool:
    """Tell whether a model has an output head with weights of its own, whatever its configuration says."""
    path, ties = find_head(model), model.all_tied_weights_keys
    return path is not None and f"{path}.weight" not in {*ties, *ties.values()}


def _home_of(table: Table) -> str:
    """Return under which path the table's structure is stored."""
    return table.path + IN_HEAD if isinstance(table, HeadTable) else table.paths[0]


def _converted_config(config: PreTrainedConfig, target: type[PreTrainedConfig]) -> Any:
    """Copy a configuration into another class of the same architecture."""
    left_out = ("model_type", "auto_map", "architectures")
    fields = {
        name: value
        for name, value in copy.deepcopy(config.to_dict()).items()
        if name not in left_out and not name.startswith("compact_")
    }
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
    state = {key: value.detach().clone() for key, value in compact.state_dict().items()}
    for path, structure in compact.compact_tables.items():
        state = {key: value for key, value in state.items() if not key.startswith(f"{path}.")}
        above = path.removesuffix(IN_HEAD)
        home = above if isinstance(compact.get_submodule(above), CompactHead) else path
        with torch.no_grad():
            state[f"{home}.weight"] = structure.dense()
    for path, layer in compact_layers(compact).items():
        del state[f"{path}.codes"], state[f"{path}.scales"]
        state[f"{path}.weight"] = layer.native_weight().detach().clone()
    return _load(native, native_config(compact), state, compact)


def native_config(compact: PreTrainedModel) -> Any:
    """Return the configuration of the native model that a compact one stands for."""
    return _converted_config(compact.config, native_class(type(compact)).config_class)
