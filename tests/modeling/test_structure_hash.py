"""HashFormer structures: the paper's parameter counts, words without a vocabulary, and ids that are no hashes."""

from __future__ import annotations

import copy
import inspect
import json
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import transformers
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer, Trainer, TrainingArguments

import hf_compact_embeddings as hce
from hf_compact_embeddings import CompactHashTokenizer
from hf_compact_embeddings.fitting import FitSource, fit_structure
from hf_compact_embeddings.modeling.extra_inputs import extra_input, take_extra_inputs
from hf_compact_embeddings.modeling.hashing import WordHasher, expand_bits, unpack_signatures
from hf_compact_embeddings.modeling.structure_hash import HashConfig, HashEmbedding

from ..tiny_models import ARCHITECTURES, tiny_config, tiny_model
from ..tools import (
    LargestTensor,
    assert_same_state,
    last_json,
    run_python,
    skip_unless_compiled_whole,
    tiny_texts,
    tiny_tokenizer,
)

VARIANTS = ("proj", "add", "pool", "emb")
HASHES = ("md", "lsh")
for_variants = pytest.mark.parametrize("variant", VARIANTS)
for_hashes = pytest.mark.parametrize("hashing", HASHES)
TEXTS = ["A film about nothing at all", "Ünïcode, 電影 🎬!", ""]


def empty(config: HashConfig, rows: int, width: int) -> HashEmbedding:
    return HashEmbedding(config, HashEmbedding.random_layout(config, rows, width), rows, width)


def new_structure(variant: str = "proj", hashing: str = "md", width: int = 24, **options) -> HashEmbedding:
    torch.manual_seed(0)
    config = HashConfig(variant=variant, hashing=hashing, init="random", source="text", **options)
    structure = empty(config, 5, width)
    structure.reset_parameters()
    return structure


def new_model(
    hashing: str = "md",
    variant: str = "proj",
    architecture: str = "bert",
    head: str = "ForSequenceClassification",
    **options,
) -> transformers.PreTrainedModel:
    """Return a tiny model from scratch that reads word hashes."""
    tokenizer = CompactHashTokenizer(hashing=hashing)
    config = HashConfig.for_tokenizer(tokenizer, variant=variant, **{"buckets": 97, **options})
    native = tiny_config(architecture, pad_token_id=0)
    name = type(native).__name__.removesuffix("Config")
    compact = getattr(hce, f"Compact{type(native).__name__}")
    fields = {key: value for key, value in native.to_diff_dict().items() if key != "model_type"}
    torch.manual_seed(0)
    built = getattr(hce, f"Compact{name}{head}")(compact(**{**fields, "pad_token_id": 0}, compact_embeddings=config))
    return built.eval()


def batch(hashing: str = "md", **options) -> transformers.BatchEncoding:
    return CompactHashTokenizer(hashing=hashing)(TEXTS, padding=True, return_tensors="pt", **options)


# What is counted: the parameters that turn bits into vectors. The generic vector (768) and the rows of special
# tokens (5 x 768) come on top. The paper's 99.1 K of "proj" include the generic vector: 98,304 + 768.
@pytest.mark.parametrize(
    ("variant", "count"), [("pool", 796_416), ("add", 196_608), ("proj", 98_304), ("emb", 38_599_680)]
)
def test_parameter_counts_of_the_paper(variant: str, count: int) -> None:
    with torch.device("meta"):
        structure = empty(HashConfig(variant=variant, source="text"), 5, 768)
    hashed = sum(parameter.numel() for parameter in structure.hashed.parameters())
    assert hashed == count
    assert structure.generic_vector.numel() == 768
    assert structure.special_vectors.numel() == 5 * 768
    assert sum(parameter.numel() for parameter in structure.parameters()) == count + 768 + 5 * 768
    if variant == "proj":
        assert hashed + structure.generic_vector.numel() == 99_072
    assert not list(structure.buffers())


@for_hashes
def test_proj_is_a_correlation(hashing: str) -> None:
    structure = new_structure("proj", hashing)
    bits = torch.randint(0, 2, (7, 128), dtype=torch.uint8)
    rows = structure.hashed.rows.detach()
    both = torch.corrcoef(torch.cat([bits.float(), rows]))
    torch.testing.assert_close(structure.hashed(bits), both[:7, 7:])


def test_add_adds_a_column_for_each_bit() -> None:
    structure = new_structure("add")
    bits = torch.randint(0, 2, (7, 128), dtype=torch.uint8)
    ones, zeros = structure.hashed.ones.detach(), structure.hashed.zeros.detach()
    wanted = (bits.float() @ ones.T + (1 - bits.float()) @ zeros.T) / 128**0.5
    torch.testing.assert_close(structure.hashed(bits), wanted)


def test_pool_adds_13_weighted_entries() -> None:
    structure = new_structure("pool")
    with torch.no_grad():
        structure.hashed.chunk_weights.normal_()
    bits = torch.randint(0, 2, (1, 128), dtype=torch.uint8)
    text = "".join(str(int(bit)) for bit in bits[0])
    chunks = [int(text[start : start + 10][::-1], 2) for start in range(0, 128, 10)]
    assert len(chunks) == 13 and chunks[-1] < 256
    assert structure.hashed.entries_of(bits).tolist() == [chunks]
    weights = structure.hashed.chunk_weights.softmax(0)
    wanted = sum(weights[i] * structure.hashed.table[chunk] for i, chunk in enumerate(chunks))
    torch.testing.assert_close(structure.hashed(bits)[0], wanted)


def test_emb_takes_the_whole_hash_modulo_the_buckets() -> None:
    structure = new_structure("emb", buckets=50_260)
    bits = torch.randint(0, 2, (50, 128), dtype=torch.uint8)
    numbers = [sum(int(bit) << place for place, bit in enumerate(row)) for row in bits]
    assert structure.hashed.entries_of(bits).flatten().tolist() == [number % 50_260 for number in numbers]


@for_variants
@for_hashes
def test_words_differ_and_special_tokens_have_their_rows(variant: str, hashing: str) -> None:
    model = new_model(hashing, variant, buckets=5003)
    inputs = batch(hashing)
    structure, seen = model.get_input_embeddings(), []
    structure.register_forward_hook(lambda *call: seen.append(call[-1]))
    with torch.no_grad():
        model(**inputs)
    rows, ids = seen[0], inputs["input_ids"]
    assert rows.isfinite().all()
    assert rows[ids == 0].eq(0).all(), "padding is masked"
    assert torch.equal(rows[0, 0], structure.special_vectors[2]) and torch.equal(rows[1, 0], rows[0, 0])
    words = ids >= 5
    assert len(torch.unique(rows[words], dim=0)) == len(torch.unique(ids[words]))
    bits = expand_bits(ids) if hashing == "md" else unpack_signatures(inputs["signatures"])
    wanted = structure.hashed(bits[words]) + structure.generic_vector
    torch.testing.assert_close(rows[words], wanted)


def test_lsh_sees_spelling_and_md_does_not() -> None:
    for hashing in HASHES:
        structure, hasher = new_structure("proj", hashing), WordHasher(HashConfig(hashing=hashing).hash_settings)
        words = ["wonderful", "wonderfull", "turnip"]
        if hashing == "md":
            bits = expand_bits(torch.tensor([hasher.word_id(word) for word in words]))
        else:
            bits = unpack_signatures(torch.tensor([hasher.signature(word) for word in words]))
        word, typo, other = structure.hashed(bits)
        nearness = F.cosine_similarity(word, typo, dim=0) - F.cosine_similarity(word, other, dim=0)
        assert (nearness > 0.4) == (hashing == "lsh")


@for_variants
@for_hashes
def test_training_moves_everything_that_is_learned(variant: str, hashing: str) -> None:
    model = new_model(hashing, variant).train()
    model(**batch(hashing), labels=torch.tensor([0, 1, 0])).loss.backward()
    for name, parameter in model.get_input_embeddings().named_parameters():
        assert parameter.grad.isfinite().all() and parameter.grad.abs().sum() > 0, name


@for_variants
@for_hashes
def test_reload_is_bit_equal(variant: str, hashing: str, tmp_path: Path) -> None:
    model = new_model(hashing, variant, storage_dtype="bfloat16")
    model.save_pretrained(tmp_path)
    CompactHashTokenizer(hashing=hashing).save_pretrained(tmp_path)
    loaded, info = AutoModelForSequenceClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert_same_state(loaded, model)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert type(tokenizer) is CompactHashTokenizer
    inputs = tokenizer(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        assert torch.equal(loaded(**inputs).logits, copy.deepcopy(model)(**inputs).logits)
    assert loaded.config.compact_embeddings == model.config.compact_embeddings
    (table,) = json.loads((tmp_path / "config.json").read_text())["compact_embeddings"].values()
    assert table["options"]["hashing"] == hashing


@for_hashes
def test_a_process_without_the_package_gives_the_same_bits(hashing: str, tmp_path: Path) -> None:
    model = new_model(hashing)
    model.save_pretrained(tmp_path / "model")
    CompactHashTokenizer(hashing=hashing).save_pretrained(tmp_path / "model")
    code = """
        import json, sys, torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer
        torch.set_num_threads(1)
        model = AutoModelForSequenceClassification.from_pretrained(sys.argv[1], trust_remote_code=True)
        tokenizer = AutoTokenizer.from_pretrained(sys.argv[1], trust_remote_code=True)
        with torch.no_grad():
            logits = model(**tokenizer(json.loads(sys.argv[2]), padding=True, return_tensors="pt")).logits
        print(json.dumps([type(model).__name__, logits.tolist()]))
    """
    arguments = (tmp_path / "model", json.dumps(TEXTS))
    name, logits = last_json(run_python(code, *arguments, home=tmp_path / "home", without_package=True))
    assert name == "CompactBertForSequenceClassification"
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")
    with torch.no_grad():
        assert loaded(**batch(hashing)).logits.tolist() == logits


ENCODERS = {
    "bert": "Model",
    "roberta": "ForSequenceClassification",
    "distilbert": "ForTokenClassification",
    "electra": "ForPreTraining",
    "albert": "ForSequenceClassification",
    "deberta-v2": "ForSequenceClassification",
    "mpnet": "ForSequenceClassification",
    "modernbert": "ForSequenceClassification",
    "t5": "EncoderModel",
    "llama": "ForSequenceClassification",
}


@for_hashes
@pytest.mark.parametrize("architecture", ENCODERS)
def test_encoders_of_many_architectures(architecture: str, hashing: str, tmp_path: Path) -> None:
    model = new_model(hashing, architecture=architecture, head=ENCODERS[architecture])
    accepted = inspect.signature(model.forward).parameters
    assert ("signatures" in accepted) == (hashing == "lsh")
    tokenizer = CompactHashTokenizer(hashing=hashing)
    outputs = []
    for padding in ("longest", "max_length"):
        encoded = tokenizer(TEXTS[:1], padding=padding, max_length=12, return_tensors="pt")
        with torch.no_grad():
            outputs.append(model(**{name: value for name, value in encoded.items() if name in accepted})[0])
    assert outputs[0].isfinite().all() and outputs[0].std() > 0
    padded = outputs[1] if outputs[0].shape == outputs[1].shape else outputs[1][:, : outputs[0].shape[1]]
    torch.testing.assert_close(outputs[0], padded, atol=1e-5, rtol=1e-4)
    model.save_pretrained(tmp_path)
    assert_same_state(type(model).from_pretrained(tmp_path), model)


def test_multiple_choice_flattens_signatures_too() -> None:
    model = new_model("lsh", head="ForMultipleChoice")
    inputs = {name: value[:2].unsqueeze(0) for name, value in batch("lsh").items()}
    with torch.no_grad():
        scores = model(**inputs).logits
        swapped = model(**{name: value.flip(1) for name, value in inputs.items()}).logits
    torch.testing.assert_close(scores, swapped.flip(1))


@pytest.mark.parametrize(
    ("architecture", "head"),
    [
        ("bert", "ForMaskedLM"),
        ("bert", "ForPreTraining"),
        ("gpt2", "LMHeadModel"),
        ("llama", "ForCausalLM"),
        ("modernbert", "ForMaskedLM"),
        ("t5", "ForConditionalGeneration"),
        ("bart", "ForSequenceClassification"),
    ],
)
def test_models_that_need_a_vocabulary_are_refused(architecture: str, head: str) -> None:
    with pytest.raises(hce.UnsupportedArchitectureError, match="has no vocabulary: looked for an encoder"):
        new_model(architecture=architecture, head=head)


def test_another_padding_token_is_refused() -> None:
    config = hce.CompactRobertaConfig(
        hidden_size=24, num_attention_heads=2, compact_embeddings=HashConfig(init="random")
    )
    with pytest.raises(hce.CompactConfigError, match="`pad_token_id` is 1, but CompactHashTokenizer pads with 0"):
        hce.CompactRobertaModel(config)


def test_what_has_no_meaning_raises() -> None:
    for structure in (new_structure(), new_model("lsh").get_input_embeddings()):
        calls = {
            structure.dense: (),
            structure.dense_chunks: (),
            structure.project: (torch.randn(1, 24),),
            partial(structure, project=True): (torch.randn(1, 24),),
            structure.resized: (6,),
        }
        for call, arguments in calls.items():
            with pytest.raises(hce.CompactEmbeddingsError, match="there is no vocabulary"):
                call(*arguments)
    model = new_model()
    with pytest.raises(hce.CompactEmbeddingsError, match="cannot be resized to 130"):
        model.resize_token_embeddings(130)
    with pytest.raises(hce.CompactEmbeddingsError, match="no dense table"):
        hce.decompress(model)


# Ids that this model cannot read.


def test_ordinary_ids_are_refused_at_the_first_batch() -> None:
    model = new_model()
    inputs = tiny_tokenizer()(tiny_texts(2), padding=True, return_tensors="pt")
    with pytest.raises(hce.CompactConfigError, match=r"neither one of the 5 special tokens nor the hash of a word"):
        model(**inputs)
    with pytest.raises(hce.CompactConfigError, match="`input_ids` holds -100"):
        model(input_ids=torch.tensor([[2, -100]]))
    model(input_ids=torch.tensor([[2, 3, 0]]))


def test_other_hash_settings_are_named_at_the_first_batch() -> None:
    inputs = CompactHashTokenizer(hash_seed=7)(TEXTS[:1], return_tensors="pt")
    with pytest.raises(hce.CompactConfigError) as error:
        new_model()(**inputs)
    assert "'hash_seed': 7" in str(error.value) and "'hash_seed': 0" in str(error.value)
    inputs = CompactHashTokenizer(hashing="lsh", ngram_sizes=(5,))(TEXTS[:1], return_tensors="pt")
    with pytest.raises(hce.CompactConfigError, match=r"other settings \(tag \d+\).*'ngram_sizes': \[2, 3, 4\]"):
        new_model("lsh")(**inputs)


def test_missing_signatures_are_told() -> None:
    inputs = batch("lsh")
    signatures = inputs.pop("signatures")
    model = new_model("lsh")
    with pytest.raises(hce.CompactConfigError, match="`signatures` is missing"):
        model(**inputs)
    with pytest.raises(hce.CompactConfigError, match=r"`signatures` is \(3, 1, 2\), but `input_ids` is"):
        model(**inputs, signatures=signatures[:, :1])
    md = batch("md")
    with pytest.raises(hce.CompactConfigError, match="'hashing': 'md'.*'hashing': 'lsh'"):
        model(**md)
    assert extra_input("signatures") is None, "nothing is left of a call that failed"


@for_hashes
def test_a_tokenizer_with_other_settings_beside_the_model_is_refused_at_the_first_batch(
    hashing: str, tmp_path: Path
) -> None:
    new_model(hashing).save_pretrained(tmp_path)
    CompactHashTokenizer(hashing=hashing, hash_seed=9).save_pretrained(tmp_path)
    model, tokenizer = AutoModel.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    with pytest.raises(hce.CompactConfigError) as error:
        model(**tokenizer(TEXTS[:1], return_tensors="pt"))
    assert "'hash_seed': 9" in str(error.value) and "'hash_seed': 0" in str(error.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("variant", "sum"),
        ("hashing", "sha"),
        ("source", "corpus"),
        ("buckets", 0),
        ("special_rows", 0),
        ("hash_seed", -1),
        ("hash_version", 2),
        ("frequency_power", -1.0),
    ],
)
def test_bad_fields_are_named(field: str, value: object) -> None:
    with pytest.raises(hce.CompactConfigError, match=f"`{field}` is {value!r}"):
        HashConfig(**{field: value})


def test_config_follows_the_tokenizer() -> None:
    tokenizer = CompactHashTokenizer(hashing="lsh", ngram_sizes=(3, 5), hash_seed=4)
    tokenizer.add_tokens(["<speaker>"])
    config = HashConfig.for_tokenizer(tokenizer, variant="add")
    assert config.hash_settings == tokenizer.hash_settings
    assert (config.special_rows, config.source, config.init, config.variant) == (6, "text", "random", "add")
    assert HashConfig(ngram_sizes=(9,)) == HashConfig(), "without influence, sizes do not tell two apart"
    with pytest.raises(hce.CompactConfigError, match="`ngram_sizes`"):
        HashConfig(hashing="lsh", ngram_sizes=())
    with pytest.raises(hce.CompactConfigError, match="`private_rows` is 3"):
        empty(HashConfig(private_rows=3), 5, 24)


# The second input.


def test_signatures_travel_through_copies_threads_and_parallel_replicas() -> None:
    model = new_model("lsh")
    inputs = [
        CompactHashTokenizer(hashing="lsh")([text], return_tensors="pt") for text in ("one two", "red blue", "a b")
    ]
    with torch.no_grad():
        wanted = [model(**row).logits for row in inputs]
        clone = copy.deepcopy(model)
        model.get_input_embeddings().generic_vector.add_(1.0)
        assert torch.equal(clone(**inputs[0]).logits, wanted[0]), "the copy has its own table"
        rows = inputs * 20

        def run(row):
            with torch.no_grad():
                return clone(**row).logits

        with ThreadPoolExecutor(4) as pool:
            for index, found in enumerate(pool.map(run, rows)):
                torch.testing.assert_close(found, wanted[index % 3])
    replica = clone._replicate_for_data_parallel()
    assert replica.forward.__self__ is replica
    assert "forward" not in vars(new_model("md"))


def test_a_compiled_model_has_no_breaks() -> None:
    skip_unless_compiled_whole()
    for hashing in HASHES:
        model = new_model(hashing)
        inputs = {key: value for key, value in batch(hashing).items()}
        with torch.no_grad():
            compiled = torch.compile(model, fullgraph=True, backend="eager")(**inputs).logits
            torch.testing.assert_close(compiled, model(**inputs).logits)


def test_forward_keeps_its_own_parameters() -> None:
    class Plain(torch.nn.Module):
        def forward(self, input_ids, flag=None, **kwargs):
            return extra_input("signatures"), flag, kwargs

    module = Plain()
    take_extra_inputs(module, ("signatures",))
    assert list(inspect.signature(module.forward).parameters) == ["input_ids", "flag", "signatures", "kwargs"]
    one = torch.ones(1)
    assert module(one, flag=2, signatures=one, other=3) == (one, 2, {"other": 3})
    assert module(one, signatures=None) == (None, None, {})


@for_hashes
def test_trainer_passes_on_what_the_model_reads(hashing: str, tmp_path: Path) -> None:
    tokenizer = CompactHashTokenizer(hashing=hashing)
    texts = ["good film", "a bad, bad film", "good", "quite bad"] * 4
    rows = [{**tokenizer(text), "labels": int("good" in text), "dropped": 1} for text in texts]
    arguments = TrainingArguments(
        str(tmp_path),
        max_steps=25,
        learning_rate=1e-2,
        use_cpu=True,
        disable_tqdm=True,
        gradient_checkpointing=True,
        bf16=True,
        per_device_train_batch_size=8,
        save_strategy="no",
        logging_steps=5,
    )
    trainer = Trainer(new_model(hashing), arguments, train_dataset=rows, processing_class=tokenizer)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < 0.5 < losses[0]
    trainer.save_model(str(tmp_path / "saved"))
    classify = transformers.pipeline("text-classification", str(tmp_path / "saved"), device="cpu")
    assert [found["label"] for found in classify(["good film", "quite bad"])] == ["LABEL_1", "LABEL_0"]


# An existing vocabulary.


@for_variants
@for_hashes
def test_an_existing_vocabulary_is_hashed(variant: str, hashing: str, tmp_path: Path) -> None:
    dense, tokenizer = tiny_model("bert"), tiny_tokenizer()
    compact = hce.compress(dense, "hash", tokenizer=tokenizer, variant=variant, hashing=hashing, buckets=53)
    structure = compact.get_input_embeddings()
    hasher = WordHasher(structure.options.hash_settings)
    if hashing == "md":
        wanted = expand_bits(torch.tensor([hasher.word_id("w7")]))
    else:
        wanted = unpack_signatures(torch.tensor([hasher.signature("w7")]))
    token = tokenizer.convert_tokens_to_ids("w7")
    assert torch.equal(structure.bits_of(torch.tensor([token])), wanted)
    report = hce.inspect(compact, against=dense)
    assert report.relative_mse < 1.0
    assert structure.private_id_list().tolist() == [0, 1, 2, 3, 4]
    compact.save_pretrained(tmp_path)
    assert_same_state(type(compact).from_pretrained(tmp_path), compact)


@for_variants
def test_the_fit_finds_what_hashes_can_express(variant: str) -> None:
    """A table that such a structure made itself is found again."""
    options = {"variant": variant, "source": "vocabulary", "buckets": 31, "storage_dtype": "float32"}
    rows = 3000 if variant == "pool" else 600
    made = fit_structure(HashConfig(**options, init="random"), FitSource(torch.zeros(rows, 12), seed=1))
    if variant == "pool":
        # The fit keeps the chunks' weights equal.
        with torch.no_grad():
            made.hashed.chunk_weights.zero_()
    table = made.dense().detach()
    found = fit_structure(HashConfig(**options), FitSource(table))
    error = (found.dense() - table).square().sum() / (table - table.mean(0)).square().sum()
    assert error < 1e-4


def test_frequent_tokens_are_fitted_more_closely() -> None:
    table = torch.randn(2000, 16, generator=torch.Generator().manual_seed(0))
    counts = torch.zeros(2000)
    counts[:100] = 1e4
    config = HashConfig(source="vocabulary")
    errors = []
    for source in (FitSource(table), FitSource(table, counts=counts)):
        errors.append((fit_structure(config, source).dense() - table)[:100].square().mean())
    assert errors[1] < 0.3 * errors[0]


def test_posthoc_needs_what_it_hashes() -> None:
    with pytest.raises(hce.CompactConfigError, match="`tokenizer` is missing: `hashing` 'lsh'"):
        hce.compress(tiny_model("bert"), "hash", hashing="lsh")
    with pytest.raises(hce.CompactConfigError, match="`source` is 'text'"):
        hce.compress(tiny_model("bert"), "hash", source="text", tokenizer=tiny_tokenizer())


def test_an_encoder_can_start_over_with_words() -> None:
    dense = tiny_model("bert", head="BertForSequenceClassification")
    compact = hce.compress(dense, "hash", init="random", hashing="lsh")
    assert compact.get_input_embeddings().reads_text
    assert compact(**batch("lsh")).logits.isfinite().all()
    assert torch.equal(compact.classifier.weight, dense.classifier.weight)


def test_nothing_grows_with_the_vocabulary() -> None:
    sizes = []
    for rows in (30_000, 30_000_000):
        with torch.device("meta"):
            sizes.append(empty(HashConfig(source="text"), rows, 256).nbytes)
    assert sizes[0] == sizes[1] == 2 * (256 * 128 + 256 + 5 * 256)
    structure = new_structure("proj", width=256)
    tokenizer = CompactHashTokenizer()
    ids = tokenizer(" ".join(f"w{i}" for i in range(1000)), return_tensors="pt")["input_ids"]
    with torch.no_grad(), LargestTensor() as largest:
        structure(ids)
    assert largest.bytes <= 1002 * 256 * 8


def test_every_architecture_is_either_built_or_refused() -> None:
    for architecture in ARCHITECTURES:
        head = ARCHITECTURES[architecture][2]
        native = type(tiny_config(architecture)).__name__.removesuffix("Config")
        if not hasattr(hce, f"Compact{native}Model") or architecture in ("bert-generation", "gemma3_text"):
            continue
        try:
            model = new_model(architecture=architecture, head="Model")
        except hce.UnsupportedArchitectureError as error:
            assert head.endswith(("Generation", "MTModel")), error
        else:
            assert model.get_input_embeddings().reads_text
