"""Which part of a model a layer is, by the names of the models that people train."""

import pytest

from altcore_reporters.layer_types import TYPES, layer_type

NAMES = {
    "attention": (
        "transformer.h.0.attn.c_attn",
        "transformer.h.11.attn.c_proj.weight",
        "bert.encoder.layer.0.attention.self.query",
        "bert.encoder.layer.0.attention.output.dense",
        "gpt_neox.layers.3.attention.query_key_value",
        "model.layers.0.self_attn.q_proj",
        "encoder.block.0.layer.0.SelfAttention.o",
        "distilbert.transformer.layer.0.attention.q_lin",
        "vit.encoder.layer.0.attention.attention.value",
    ),
    "mlp": (
        "transformer.h.0.mlp.c_fc",
        "transformer.h.0.mlp.c_proj.bias",
        "bert.encoder.layer.0.intermediate.dense",
        "bert.encoder.layer.0.output.dense",
        "gpt_neox.layers.3.mlp.dense_h_to_4h",
        "model.layers.0.mlp.gate_proj",
        "model.decoder.layers.0.fc1",
        "encoder.block.0.layer.1.DenseReluDense.wi",
        "distilbert.transformer.layer.0.ffn.lin1",
        "model.layers.0.block_sparse_moe.experts.3.w1",
    ),
    "embedding": (
        "transformer.wte",
        "transformer.wpe.weight",
        "bert.embeddings.word_embeddings",
        "gpt_neox.embed_in",
        "model.embed_tokens",
        "shared",
    ),
    "classifier": (
        "lm_head",
        "lm_head.weight",
        "embed_out",
        "classifier",
        "pre_classifier",
        "cls.predictions.decoder",
        "score",
        "fc",
    ),
    "convolution": ("conv1", "layer1.0.conv2.weight", "layer2.0.downsample.0", "shortcut.0"),
    "normalization": (
        "transformer.ln_f",
        "transformer.h.0.ln_1",
        "bert.encoder.layer.0.attention.output.LayerNorm.weight",
        "model.layers.0.input_layernorm",
        "layer1.0.bn1",
    ),
    "other": ("rotary.inv_freq", "something"),
}


@pytest.mark.parametrize(("kind", "name"), [(k, n) for k, own in NAMES.items() for n in own])
def test_layers_are_known_by_name(kind, name):
    assert layer_type(name) == kind


def test_every_type_has_a_name_here():
    """None is forgotten."""
    assert set(NAMES) == set(TYPES)
