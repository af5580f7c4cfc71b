"""compress() and decompress(): what they take, what they keep, and that a seed repeats them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from transformers import AutoModel, AutoModelForMaskedLM

import hf_compact_embeddings as hce

from .cases import Case, first_cases, for_all, for_each_method, for_pairs
from .tiny_models import VOCABULARY, tiny_model
from .tools import assert_same_outputs, assert_same_state, tiny_texts, tiny_tokenizer

COUNTS = torch.arange(VOCABULARY).float()
OPTIONS = {"num_subspaces": 4, "codebook_size": 16}


def kept_ids(compact: transformers.PreTrainedModel) -> list[int]:
    return compact.get_input_embeddings().private_id_list().tolist()


@for_pairs("project", "dense")
def test_with_all_rows_kept_nothing_changes(architecture: str, case: Case) -> None:
    """The whole way there and back: biases, scales, ties and aliases are those of the dense model."""
    dense = tiny_model(architecture)
    options = case.without_budget() | {"storage_dtype": "float32", "private_rows": VOCABULARY}
    compact = hce.compress(dense, case.method, token_counts=COUNTS, **options)
    assert_same_outputs(compact, dense, 1e-5)
    native = hce.decompress(compact)
    assert_same_state(native, dense)
    assert_same_outputs(native, dense)


@for_each_method("project")
def test_a_name_with_options_and_a_configuration_do_the_same(case: Case) -> None:
    dense = tiny_model("bert")
    one = hce.compress(dense, case.method, **case.options)
    other = hce.compress(dense, case.config())
    assert one.config.compact_embeddings == other.config.compact_embeddings
    assert_same_state(one, other)
    assert case.config() == case.config(), "the given configuration is left alone"
    with pytest.raises(hce.CompactConfigError, match="`storage_dtype` cannot be given beside a configuration"):
        hce.compress(dense, case.config(), storage_dtype="float32")


@for_each_method("project")
def test_a_folder_is_loaded_with_the_class_that_it_names(case: Case, tmp_path: Path) -> None:
    dense = tiny_model("bert")
    dense.save_pretrained(tmp_path)
    wanted = hce.compress(dense, case.method, **case.options)
    for folder in (tmp_path, str(tmp_path)):
        compact = hce.compress(folder, case.method, **case.options)
        assert type(compact) is hce.CompactBertForMaskedLM
        assert_same_state(compact, wanted)
    assert type(hce.compress(tmp_path, case.config(), auto_class=AutoModel)) is hce.CompactBertModel
    assert type(hce.compress(tmp_path, case.config(), auto_class=AutoModelForMaskedLM)) is type(wanted)


@for_each_method("project")
def test_a_folder_that_names_no_class(case: Case, tmp_path: Path) -> None:
    dense = tiny_model("bert")
    dense.save_pretrained(tmp_path)
    dense.config.architectures = ["BertForTelepathy"]
    dense.config.save_pretrained(tmp_path)
    with pytest.raises(hce.CompactConfigError, match="BertForTelepathy.*pass `auto_class`"):
        hce.compress(tmp_path, case.config())
    assert type(hce.compress(tmp_path, case.config(), auto_class=AutoModel)) is hce.CompactBertModel


@for_each_method("project")
def test_the_padding_row_is_kept_exactly(case: Case) -> None:
    dense = tiny_model("roberta")
    with torch.no_grad():
        dense.get_input_embeddings().weight[1] = torch.linspace(-1, 1, 24)
    compact = hce.compress(dense, case.config())
    structure = compact.get_input_embeddings()
    assert dense.config.pad_token_id == 1 and kept_ids(compact) == [1]
    assert not structure.layout.mask_padding
    row = dense.get_input_embeddings().weight[1].to(structure.stored_dtype("private_vectors")).float()
    assert torch.equal(structure(torch.tensor([1]))[0], row)
    hidden = torch.randn(3, 24)
    torch.testing.assert_close(structure.project(hidden)[:, 1], hidden @ row)


@for_each_method("project")
def test_a_table_without_padding_keeps_no_row(case: Case) -> None:
    dense = tiny_model("gpt2")
    assert dense.get_input_embeddings().padding_idx is None
    compact = hce.compress(dense, case.config())
    assert kept_ids(compact) == []
    assert compact.get_input_embeddings().private_vectors is None


@for_each_method("project")
def test_private_rows_are_padding_specials_and_the_most_frequent(case: Case) -> None:
    dense, tokenizer = tiny_model("bert"), tiny_tokenizer()
    counts = torch.zeros(VOCABULARY)
    counts[[0, 3, 77, 20, 90]] = torch.tensor([99.0, 98.0, 50.0, 40.0, 30.0])
    options = {**case.options, "token_counts": counts}
    assert kept_ids(hce.compress(dense, case.method, **options)) == [0]
    assert kept_ids(hce.compress(dense, case.method, tokenizer=tokenizer, **options)) == [0, 1, 2, 3, 4]
    assert kept_ids(hce.compress(dense, case.method, private_rows=1, **options)) == [0]
    assert kept_ids(hce.compress(dense, case.method, private_rows=4, **options)) == [0, 3, 20, 77]
    both = {**options, "tokenizer": tokenizer}
    assert kept_ids(hce.compress(dense, case.method, private_rows=3, **both)) == [0, 1, 2, 3, 4]
    assert kept_ids(hce.compress(dense, case.method, private_rows=7, **both)) == [0, 1, 2, 3, 4, 20, 77]
    compact = hce.compress(dense, case.method, private_rows=7, **both)
    assert hce.inspect(compact).private_rows == 7
    stored = compact.get_input_embeddings().stored_dtype("private_vectors")
    ids = torch.tensor(kept_ids(compact))
    wanted = dense.get_input_embeddings().weight[ids].to(stored).float()
    assert torch.equal(compact.get_input_embeddings()(ids), wanted)


@for_each_method("project")
def test_special_tokens_beyond_the_table_are_left_out(case: Case) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["[NEW]"]})
    assert max(tokenizer.all_special_ids) == VOCABULARY
    compact = hce.compress(tiny_model("bert"), case.config(), tokenizer=tokenizer)
    assert kept_ids(compact) == [0, 1, 2, 3, 4]


@for_each_method("project")
def test_texts_are_counted(case: Case) -> None:
    dense, tokenizer, texts = tiny_model("bert"), tiny_tokenizer(), tiny_texts(40)
    counts = torch.zeros(VOCABULARY)
    for text in texts:
        for token in tokenizer(text)["input_ids"]:
            counts[token] += 1
    options = {**case.options, "tokenizer": tokenizer, "private_rows": 9}
    if case.method in ("blocks", "rotated", "scalar"):
        # Sensitivities are read from texts, of which there are none beside counts.
        options["metric"] = "plain"
    wanted = hce.compress(dense, case.method, token_counts=counts, **options)
    for given in (texts, tuple(texts), iter(texts), (text for text in texts)):
        assert_same_state(hce.compress(dense, case.method, texts=given, **options), wanted)
    # Counts that are given go before texts.
    both = hce.compress(dense, case.method, texts=tiny_texts(5, seed=1), token_counts=counts.tolist(), **options)
    assert_same_state(both, wanted)


@for_all("project")
@pytest.mark.parametrize("init", ["pretrained", "random"])
def test_seeds_repeat_whatever_the_global_random_state(case: Case, init: str) -> None:
    dense = tiny_model("bert")
    models = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        models.append(hce.compress(dense, case.config(init=init), seed=3))
    assert_same_state(*models)


@pytest.mark.parametrize("init", ["pretrained", "random"])
def test_seeds_differ(init: str) -> None:
    dense, config = tiny_model("bert"), hce.SubspaceConfig(**OPTIONS, init=init)
    one, other = (hce.compress(dense, config, seed=seed) for seed in (1, 2))
    assert not torch.equal(one.get_input_embeddings().codes, other.get_input_embeddings().codes)


@pytest.mark.parametrize("architecture", ["bert", "llama", "t5"])
def test_contextual_features(architecture: str) -> None:
    dense, texts = tiny_model(architecture), tiny_texts(40)
    if architecture == "t5":
        dense.encoder.final_layer_norm.weight.data.normal_()
    config = hce.SubspaceConfig(**OPTIONS, features="contextual")
    given = {"tokenizer": tiny_tokenizer(), "texts": texts}
    compact = hce.compress(dense, config, **given)
    plain = hce.compress(dense, hce.SubspaceConfig(**OPTIONS), **given)
    codes = compact.get_input_embeddings().codes
    assert not torch.equal(codes, plain.get_input_embeddings().codes)
    again = hce.compress(dense.train(), config, **given)
    assert dense.training and again.training
    assert torch.equal(again.get_input_embeddings().codes, codes), "dropout must not decide the codes"
    as_iterator = hce.compress(dense.eval(), config, tokenizer=tiny_tokenizer(), texts=iter(texts))
    assert torch.equal(as_iterator.get_input_embeddings().codes, codes)


def bad_calls() -> dict[str, tuple[dict, str]]:
    config = first_cases("project")[0].config()
    tokenizer = tiny_tokenizer()
    return {
        "unknown method": ({"method": "zip"}, "`method` is 'zip'.*'subspace'"),
        "unknown option": ({"method": "subspace", "shape": 3}, "'subspace' has no option 'shape'.*num_subspaces"),
        "too many subspaces": ({"method": "subspace", "num_subspaces": 25}, "`num_subspaces` is 25.*24 wide"),
        "no rows": ({"method": "subspace", "codebook_size": 0}, "`codebook_size` is 0.*at least 1"),
        "large codebook": ({"method": "subspace", "num_subspaces": 4}, "`codebook_size` is 256.*120 rows"),
        "few counts": ({"method": config, "token_counts": torch.ones(119)}, r"`token_counts`.*\(119,\).*120 rows"),
        "many counts": ({"method": config, "token_counts": torch.ones(121)}, r"`token_counts`.*\(121,\).*120 rows"),
        "negative counts": ({"method": config, "token_counts": -torch.ones(120)}, "`token_counts`.*negative"),
        "texts alone": ({"method": config, "texts": ["w5"]}, "`tokenizer` is missing"),
        "one text": ({"method": config, "texts": "w5 w6", "tokenizer": tokenizer}, "`texts` is one string"),
        "no texts": ({"method": config, "texts": [], "tokenizer": tokenizer}, "`texts` is empty"),
        "empty texts": ({"method": config, "texts": ["", ""], "tokenizer": tokenizer}, "`texts` is empty"),
        "private rows unknown": ({"method": "subspace", "private_rows": 9}, "`private_rows` is 9.*`token_counts`"),
        "private rows too many": (
            {"method": "subspace", "private_rows": 121, "token_counts": COUNTS},
            "`private_rows` is 121.*120 rows",
        ),
        "contextual without texts": (
            {"method": hce.SubspaceConfig(**OPTIONS, features="contextual")},
            "`features` is 'contextual'.*`tokenizer`",
        ),
        "too few tuples": (
            {"method": "subspace", "num_subspaces": 2, "codebook_size": 10, "unique_codes": True},
            "`unique_codes` needs 120",
        ),
    }


@pytest.mark.parametrize("name", bad_calls())
def test_bad_calls(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    arguments, message = bad_calls()[name]
    dense = tiny_model("bert")
    before = {key: value.clone() for key, value in dense.state_dict().items()}
    with pytest.raises(hce.CompactConfigError, match=message) as error:
        hce.compress(dense, **arguments)
    assert isinstance(error.value, ValueError)
    assert all(torch.equal(value, before[key]) for key, value in dense.state_dict().items())
    assert not list(tmp_path.iterdir())


@for_each_method("project")
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_table_with_values_that_are_no_numbers(case: Case, value: float) -> None:
    dense = tiny_model("bert")
    with torch.no_grad():
        dense.get_input_embeddings().weight[119, 23] = value
    with pytest.raises(hce.CompactConfigError, match="`table` holds NaN or infinity"):
        hce.compress(dense, case.config())


@for_each_method("project")
def test_compact_already_and_not_compact(case: Case, tmp_path: Path) -> None:
    dense = tiny_model("bert")
    compact = hce.compress(dense, case.config())
    with pytest.raises(hce.CompactConfigError, match="`model` is a CompactBertForMaskedLM, which is compact already"):
        hce.compress(compact, case.config())
    compact.save_pretrained(tmp_path)
    with pytest.raises(hce.CompactConfigError, match="`model`.*compact already"):
        hce.compress(tmp_path, case.config())
    with pytest.raises(hce.CompactConfigError, match="`compact` is a BertForMaskedLM, which is not compact"):
        hce.decompress(dense)
    with pytest.raises(hce.CompactConfigError, match="`compact` is a BertForMaskedLM, which is not compact"):
        hce.inspect(dense)


@for_each_method("project", "dense")
def test_a_compact_model_can_be_compressed_again_by_way_of_the_dense_one(case: Case) -> None:
    compact = hce.compress(tiny_model("bert"), case.config())
    again = hce.compress(hce.decompress(compact), case.config())
    assert hce.inspect(again, against=hce.decompress(compact)).relative_mse < 0.5
