"""Tiny, randomly initialised models of many architectures, built without any file."""

from __future__ import annotations

import torch
import transformers
from transformers import PreTrainedModel

VOCABULARY = 120

_ENCODER = {
    "vocab_size": VOCABULARY,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 64,
}
_DECODER = {
    **_ENCODER,
    "num_key_value_heads": 1,
    "head_dim": 12,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}

# Architecture: the configuration class, its options, and the head that scores all tokens.
ARCHITECTURES: dict[str, tuple[str, dict, str]] = {
    "bert": ("BertConfig", _ENCODER, "BertForMaskedLM"),
    "roberta": ("RobertaConfig", _ENCODER, "RobertaForMaskedLM"),
    "xlm-roberta": ("XLMRobertaConfig", _ENCODER, "XLMRobertaForMaskedLM"),
    "camembert": ("CamembertConfig", _ENCODER, "CamembertForMaskedLM"),
    "bert-generation": ("BertGenerationConfig", {**_ENCODER, "is_decoder": True}, "BertGenerationDecoder"),
    "distilbert": (
        "DistilBertConfig",
        {"vocab_size": VOCABULARY, "dim": 24, "n_layers": 2, "n_heads": 2, "hidden_dim": 32},
        "DistilBertForMaskedLM",
    ),
    "electra": ("ElectraConfig", {**_ENCODER, "embedding_size": 16}, "ElectraForMaskedLM"),
    "albert": ("AlbertConfig", {**_ENCODER, "embedding_size": 16}, "AlbertForMaskedLM"),
    "deberta-v2": ("DebertaV2Config", _ENCODER, "DebertaV2ForMaskedLM"),
    "mpnet": ("MPNetConfig", _ENCODER, "MPNetForMaskedLM"),
    "modernbert": (
        "ModernBertConfig",
        {
            **_ENCODER,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "cls_token_id": 1,
            "sep_token_id": 2,
        },
        "ModernBertForMaskedLM",
    ),
    "gpt2": (
        "GPT2Config",
        {
            "vocab_size": VOCABULARY,
            "n_embd": 24,
            "n_layer": 2,
            "n_head": 2,
            "n_positions": 64,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 0,
        },
        "GPT2LMHeadModel",
    ),
    "llama": ("LlamaConfig", {**_DECODER, "tie_word_embeddings": True}, "LlamaForCausalLM"),
    "llama-untied": ("LlamaConfig", {**_DECODER, "tie_word_embeddings": False}, "LlamaForCausalLM"),
    "qwen3": ("Qwen3Config", {**_DECODER, "tie_word_embeddings": True}, "Qwen3ForCausalLM"),
    "gemma3_text": ("Gemma3TextConfig", _DECODER, "Gemma3ForCausalLM"),
    "t5": (
        "T5Config",
        {
            "vocab_size": VOCABULARY,
            "d_model": 24,
            "d_kv": 12,
            "d_ff": 32,
            "num_layers": 2,
            "num_heads": 2,
            "decoder_start_token_id": 0,
        },
        "T5ForConditionalGeneration",
    ),
    "bart": (
        "BartConfig",
        {
            "vocab_size": VOCABULARY,
            "d_model": 24,
            "encoder_layers": 1,
            "decoder_layers": 1,
            "encoder_attention_heads": 2,
            "decoder_attention_heads": 2,
            "encoder_ffn_dim": 32,
            "decoder_ffn_dim": 32,
            "max_position_embeddings": 64,
            "scale_embedding": True,
        },
        "BartForConditionalGeneration",
    ),
    "marian": (
        "MarianConfig",
        {
            "vocab_size": VOCABULARY,
            "d_model": 24,
            "encoder_layers": 1,
            "decoder_layers": 1,
            "encoder_attention_heads": 2,
            "decoder_attention_heads": 2,
            "encoder_ffn_dim": 32,
            "decoder_ffn_dim": 32,
            "max_position_embeddings": 64,
            "pad_token_id": 0,
            "eos_token_id": 2,
            "decoder_start_token_id": 0,
        },
        "MarianMTModel",
    ),
}


def tiny_config(architecture: str, **options) -> transformers.PreTrainedConfig:
    name, defaults, _ = ARCHITECTURES[architecture]
    return getattr(transformers, name)(**{**defaults, **options})


def tiny_model(architecture: str = "bert", head: str | None = None, seed: int = 0, **options) -> PreTrainedModel:
    """Return a tiny model in evaluation mode; `head` names a class, by default the one that scores tokens."""
    torch.manual_seed(seed)
    model = getattr(transformers, head or ARCHITECTURES[architecture][2])(tiny_config(architecture, **options))
    with torch.no_grad():
        # Tokens that really differ, and a bias that is seen when it is lost.
        model.get_input_embeddings().weight.normal_(std=0.5)
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.1)
    return model.eval()


def tiny_inputs(model: PreTrainedModel, batch: int = 2, length: int = 9, seed: int = 0) -> dict[str, torch.Tensor]:
    """Return inputs that any of the tiny models takes; the first sequence holds the padding token."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, model.get_input_embeddings().num_embeddings, (batch, length), generator=generator)
    mask = torch.ones_like(ids)
    padding = model.config.pad_token_id
    if padding is not None:
        ids[0, -2:], mask[0, -2:] = padding, 0
    inputs = {"input_ids": ids, "attention_mask": mask}
    if model.config.is_encoder_decoder:
        # Heads that classify a sequence read its last state there.
        ids[:, -3] = model.config.eos_token_id
        inputs["decoder_input_ids"] = ids.flip(1)
    return inputs
