"""Input tables are found in the model itself; what cannot be made compact is told in one clear error."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, DebertaV2Config, DebertaV2ForMaskedLM

import hf_compact_embeddings as hce
from hf_compact_embeddings.evaluation.report import dense_tables
from hf_compact_embeddings.modeling.architectures import embedding_scale, find_input_table
from hf_compact_embeddings.modeling.errors import UnsupportedArchitectureError

from ..tiny_models import ARCHITECTURES, VOCABULARY, tiny_config, tiny_model

_SMALL = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
OPTIONS = {"num_subspaces": 4, "codebook_size": 16}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_table_and_its_ties(architecture: str) -> None:
    model = tiny_model(architecture)
    table = find_input_table(model)
    weight = table.module.weight
    assert table.module is model.get_input_embeddings()
    assert weight.shape[0] == VOCABULARY
    found = {f"{path}.weight" for path in (*table.paths, *table.tied_paths)}
    shared = {name for name, value in model.named_parameters(remove_duplicate=False) if value is weight}
    assert found == shared


@pytest.mark.parametrize(("architecture", "scale"), [("bert", 1.0), ("gemma3_text", 24**0.5), ("bart", 24**0.5)])
def test_the_scale_of_look_ups(architecture: str, scale: float) -> None:
    model = tiny_model(architecture)
    assert find_input_table(model).scale == pytest.approx(scale)
    compact = hce.compress(model, hce.SubspaceConfig(**OPTIONS))
    assert compact.get_input_embeddings().scale == pytest.approx(scale)
    ids = torch.tensor([5, 9])
    rows = compact.get_input_embeddings().dense()[ids]
    torch.testing.assert_close(compact.get_input_embeddings()(ids), rows * scale)


def test_aliases_of_a_shared_table_keep_their_own_scale() -> None:
    compact = hce.compress(tiny_model("bart"), hce.SubspaceConfig(**OPTIONS))
    ids = torch.tensor([[5, 9]])
    rows = compact.get_input_embeddings().dense()[ids]
    for part in (compact.model.encoder, compact.model.decoder):
        torch.testing.assert_close(part.embed_tokens(ids), rows * 24**0.5)
        assert not list(part.embed_tokens.parameters())


@pytest.mark.parametrize(
    ("model_class", "config", "kind"),
    [
        ("ViTModel", transformers.ViTConfig(**_SMALL), "ViTPatchEmbeddings"),
        ("ViTForImageClassification", transformers.ViTConfig(**_SMALL), "ViTPatchEmbeddings"),
        (
            "Wav2Vec2Model",
            transformers.Wav2Vec2Config(**_SMALL, conv_dim=(8,) * 7, num_conv_pos_embedding_groups=4),
            "Wav2Vec2Model",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_models_without_a_token_table(model_class: str, config, kind: str) -> None:
    model = getattr(transformers, model_class)(config)
    with pytest.raises(UnsupportedArchitectureError) as error:
        hce.compress(model, hce.SubspaceConfig(**OPTIONS))
    message = str(error.value)
    assert "looked for" in message and "nn.Embedding" in message and kind in message
    assert isinstance(error.value, hce.CompactEmbeddingsError) and isinstance(error.value, ValueError)


class ShiftedEmbedding(nn.Embedding):
    def __init__(self, *args) -> None:
        super().__init__(*args)
        self.shift = nn.Parameter(torch.zeros(1))


def test_embeddings_with_more_than_a_scale_are_refused() -> None:
    assert embedding_scale(nn.Embedding(3, 2)) == 1.0
    model = tiny_model("bert")
    model.set_input_embeddings(ShiftedEmbedding(VOCABULARY, 24, 0))
    with pytest.raises(UnsupportedArchitectureError, match="ShiftedEmbedding.*looked for a plain nn.Embedding"):
        hce.compress(model, hce.SubspaceConfig(**OPTIONS))


def test_classes_that_transformers_does_not_have_are_refused() -> None:
    class MyBert(transformers.BertForMaskedLM):
        pass

    with pytest.raises(UnsupportedArchitectureError, match="looked for it as `transformers.MyBert`"):
        hce.compress(MyBert(tiny_model("bert").config), hce.SubspaceConfig(**OPTIONS))


def test_a_tie_by_configuration_that_holds_other_values_is_refused() -> None:
    model = tiny_model("llama")
    model.lm_head.weight = nn.Parameter(torch.randn_like(model.lm_head.weight))
    with pytest.raises(UnsupportedArchitectureError, match="`lm_head` is tied.*tie_word_embeddings = False"):
        hce.compress(model, hce.SubspaceConfig(**OPTIONS))


def test_other_tables_are_reported() -> None:
    untied = hce.compress(tiny_model("llama-untied"), hce.SubspaceConfig(**OPTIONS))
    assert set(dense_tables(untied, VOCABULARY)) == {"lm_head.weight"}
    assert hce.inspect(untied).other_tables == {"lm_head.weight": VOCABULARY * 24 * 4}
    for architecture in ("llama", "bert", "t5"):
        tied = hce.compress(tiny_model(architecture), hce.SubspaceConfig(**OPTIONS))
        assert hce.inspect(tied).other_tables == {}


def test_modules_of_a_tied_head_answer_what_libraries_ask() -> None:
    compact = hce.compress(tiny_model("bert"), hce.SubspaceConfig(**OPTIONS))
    head = compact.get_output_embeddings()
    assert (head.in_features, head.out_features) == (24, VOCABULARY)
    assert head.weight.is_meta and head.weight.shape == (VOCABULARY, 24)
    assert head.bias.shape == (VOCABULARY,)
    assert [name for name, _ in head.named_parameters()] == ["bias"]


def test_a_head_that_computes_with_the_table_itself_fails_loudly() -> None:
    """A plain meta tensor in its place gave scores out of memory that nobody had written to."""
    config = DebertaV2Config(vocab_size=VOCABULARY, legacy=False, **_SMALL)
    # Older releases of Transformers name the head itself among what is tied.
    with pytest.raises(UnsupportedArchitectureError, match="computes with the table's `weight` itself|looked for"):
        hce.compress(DebertaV2ForMaskedLM(config), hce.SubspaceConfig(**OPTIONS))(torch.tensor([[5, 17]]))


def test_an_architecture_that_starts_its_table_itself() -> None:
    config = CLIPTextConfig(vocab_size=VOCABULARY, max_position_embeddings=32, **_SMALL)
    dense = CLIPTextModel(config).eval()
    compact = hce.compress(dense, "scalar")
    ids = torch.tensor([[5, 17, 89, 42]])
    torch.testing.assert_close(compact(ids)[0], dense(ids)[0], atol=0.05, rtol=0.05)
    fresh = type(compact)(compact.config)
    assert fresh(ids)[0].isfinite().all()


def test_ids_that_went_to_the_device_of_the_weight_are_refused() -> None:
    compact = hce.compress(tiny_model("bert"), hce.SubspaceConfig(**OPTIONS))
    with pytest.raises(UnsupportedArchitectureError, match="looked for ids on the device of the model"):
        compact(torch.tensor([[5, 17]]).to(compact.get_input_embeddings().weight.device))


@pytest.mark.parametrize("architecture", ["distilbert", "electra", "modernbert"])
def test_biases_of_tied_heads_start_at_zero(architecture: str, tmp_path: Path) -> None:
    head = getattr(hce, "Compact" + type(tiny_model(architecture)).__name__)
    structure = hce.SubspaceConfig(**OPTIONS, init="random")
    config = head.config_class(**tiny_config(architecture).to_dict() | {"compact_embeddings": structure})
    hce.compress(tiny_model(architecture).base_model, hce.SubspaceConfig(**OPTIONS)).save_pretrained(tmp_path)
    # Memory is not zeroed, but filled with NaN.
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        started, opened = head(config), head.from_pretrained(tmp_path)
    finally:
        torch.use_deterministic_algorithms(False)
    for model in (started, opened):
        assert model.get_output_embeddings().bias.eq(0).all()
        assert model(torch.tensor([[5, 17]])).logits.isfinite().all()
