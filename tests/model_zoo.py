"""The models of the matrix: small, of many families, with random weights; as data.

A `Case` builds a model, draws a batch and runs it. Models of the transformers library come from
their configurations, without dropout: nothing is downloaded.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import model_parts as parts
import torch
from attrs import evolve, frozen
from model_parts import CLASSES, HEADS, LAYERS, WIDTH, WORDS
from torch import Tensor, nn
from torch.nn import functional

SAMPLES, LENGTH, SIDE = 16, 12, 64
Batch = dict[str, Tensor]
Outcome = tuple[Tensor, Tensor]
"""What a model says, and its loss."""


@frozen
class Case:
    """A model of the matrix: what it is, how it is built and fed, and what it learns by."""

    what: str
    build: Callable[[], nn.Module]
    batch: Callable[[], Batch]
    run: Callable[[nn.Module, Batch], Outcome]
    library: str = "torch"
    """The one that has the model."""
    unmet: str = ""
    """Pattern of the layers that a recipe plans for and does not meet, as it says itself."""


# ------------------------------------------------------------------------------- batches


def _drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def words() -> Batch:
    """Return token ids, each to be told from those before it."""
    ids = torch.randint(4, WORDS, (4, LENGTH), generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids, "labels": ids}


def translations() -> Batch:
    """Return token ids, and others that they mean."""
    ids = words()["input_ids"]
    return {"input_ids": ids, "labels": ids.flip(1)}


def ids_alone() -> Batch:
    """Return token ids for a model without a head."""
    return {"input_ids": words()["input_ids"]}


def images() -> Batch:
    """Return images and their classes."""
    pixels = _drawn(SAMPLES, 3, SIDE, SIDE).requires_grad_()
    return {"pixel_values": pixels, "labels": torch.arange(SAMPLES) % CLASSES}


def spectrograms() -> Batch:
    """Return spectrograms and transcripts."""
    features = _drawn(4, 8, 2 * LENGTH).requires_grad_()
    return {"input_features": features, "labels": words()["input_ids"]}


def sounds() -> Batch:
    """Return sounds and transcripts. They have no gradient: Wav2Vec2 wants leaves of its own."""
    return {"input_values": _drawn(2, 400), "labels": torch.tensor([[3, 1, 4], [1, 5, 9]])}


def vectors() -> Batch:
    """Return vectors and their classes."""
    return {"x": _drawn(SAMPLES, WIDTH).requires_grad_(), "labels": torch.arange(SAMPLES) % CLASSES}


# --------------------------------------------------------------------- what a model does


def own_loss(model: nn.Module, batch: Batch) -> Outcome:
    """Run a model of the transformers library, which computes its loss itself."""
    made = model(**batch)
    return made.logits, made.loss


def projected(model: nn.Module, batch: Batch) -> Outcome:
    """Run a model without a head, whose loss is a random projection of its states."""
    hidden = model(**batch).last_hidden_state
    return hidden, (hidden * _drawn(*hidden.shape)).mean()


def classified(model: nn.Module, batch: Batch) -> Outcome:
    """Run a model of one tensor, and compare with a class a sample."""
    first = next(v for k, v in batch.items() if k != "labels")
    logits = model(first)
    return logits, functional.cross_entropy(logits, batch["labels"])


def continued(model: nn.Module, batch: Batch) -> Outcome:
    """Run a model of token ids, and compare with the next ones."""
    logits = model(batch["input_ids"])
    guess, truth = logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten()
    return logits, functional.cross_entropy(guess, truth)


# ------------------------------------------------------------------------ other libraries


def from_config(name: str, config: str, keys: Mapping[str, Any], more: Mapping[str, Any]) -> Any:
    """Build a model of the transformers library without dropout.

    Its weights are as large as narrow layers need, or attention would weigh all alike; its
    activations are smooth, or a difference of rounding could cross a kink.
    """
    library = importlib.import_module("transformers")
    made = getattr(library, config)(**keys)
    for key, value in vars(made).items():
        if isinstance(value, float) and "drop" in key:
            setattr(made, key, 0.0)
        elif key in ("initializer_range", "init_std"):
            setattr(made, key, 0.2)
        elif key == "hidden_act" and value in ("relu", "relu6"):
            setattr(made, key, "gelu")
    model = getattr(library, name)._from_config(made, **more)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def hf(
    name: str, config: str, batch: Any, keys: Mapping[str, Any], run: Any = own_loss, **more: Any
) -> Case:
    """Return the case of a class of the transformers library."""
    build = partial(from_config, name, f"{config}Config", keys, more)
    said = ", ".join(f"{k.removesuffix('_implementation')} {v}" for k, v in more.items())
    return Case(f"{name} ({said})" if said else name, build, batch, run, "transformers")


def timm_model(name: str, **keys: Any) -> Case:
    """Return the case of a model of timm."""

    def build() -> nn.Module:
        return importlib.import_module("timm").create_model(name, num_classes=CLASSES, **keys)

    return Case(name, build, images, classified, "timm")


def missing(case: Case) -> str:
    """Return why a case's library does not load here; empty if it does."""
    try:
        importlib.import_module(case.library)
    except Exception as error:  # torchvision, which timm needs, may be there and not load
        return f"{case.library} does not load: {error}"
    return ""


# ------------------------------------------------------------------------- configurations

BODY = {
    "hidden_size": WIDTH,
    "intermediate_size": 2 * WIDTH,
    "num_attention_heads": HEADS,
    "num_hidden_layers": LAYERS,
}
TOKENS = {"vocab_size": WORDS, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
TEXT = {**BODY, **TOKENS, "max_position_embeddings": 32}
DECODER = {**TEXT, "num_key_value_heads": 1, "head_dim": WIDTH // HEADS}
MIXTURE = {**DECODER, "num_experts_per_tok": 2, "num_local_experts": 4}
QWEN_MOE = {
    **DECODER,
    "num_experts_per_tok": 2,
    "num_experts": 4,
    "moe_intermediate_size": WIDTH,
    "shared_expert_intermediate_size": WIDTH,
}
LLAMA4 = {
    **MIXTURE,
    "num_experts_per_tok": 1,
    "intermediate_size_mlp": 2 * WIDTH,
    "interleave_moe_layer_step": 1,
    "attention_chunk_size": 32,
}
PHIMOE = {**MIXTURE, "router_jitter_noise": 0.5}  # less, and routers have no gradient
GPT2 = {**TOKENS, "n_embd": WIDTH, "n_head": HEADS, "n_layer": LAYERS, "n_positions": 32}
BLOOM = {**TOKENS, "hidden_size": WIDTH, "n_head": HEADS, "n_layer": LAYERS}
XLNET = {**TOKENS, "d_model": WIDTH, "n_head": HEADS, "n_layer": LAYERS, "d_inner": 2 * WIDTH}
FALCON = {k: v for k, v in BODY.items() if k != "intermediate_size"} | TOKENS
MAMBA = {**TOKENS, "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "state_size": 4}
MAMBA2 = {**MAMBA, "num_heads": 4, "head_dim": WIDTH // HEADS, "n_groups": 1, "chunk_size": 4}
T5 = {
    **TOKENS,
    "d_model": WIDTH,
    "d_kv": WIDTH // HEADS,
    "d_ff": 2 * WIDTH,
    "num_layers": LAYERS,
    "num_heads": HEADS,
    "feed_forward_proj": "gelu",
    "decoder_start_token_id": 0,
}
PAIR = {
    **TOKENS,
    "d_model": WIDTH,
    "encoder_layers": LAYERS,
    "decoder_layers": LAYERS,
    "encoder_attention_heads": HEADS,
    "decoder_attention_heads": HEADS,
    "encoder_ffn_dim": 2 * WIDTH,
    "decoder_ffn_dim": 2 * WIDTH,
    "decoder_start_token_id": 3,
}
WHISPER = {
    **PAIR,
    "num_mel_bins": 8,
    "max_source_positions": LENGTH,
    "max_target_positions": 32,
    "begin_suppress_tokens": None,
}
SOUND = {
    **BODY,
    "vocab_size": 12,
    "conv_dim": (16, 16),
    "conv_kernel": (8, 4),
    "conv_stride": (4, 4),
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
    "apply_spec_augment": False,
}
PICTURE = {"image_size": SIDE, "num_channels": 3, "num_labels": CLASSES}
VIT = {**PICTURE, **BODY, "patch_size": 16}
SWIN = {
    **PICTURE,
    "patch_size": 8,
    "embed_dim": 16,
    "depths": [1, 1],
    "num_heads": [2, 2],
    "window_size": 4,
}
STAGES = {
    "num_channels": 3,
    "num_labels": CLASSES,
    "embedding_size": 8,
    "hidden_sizes": [8, 16],
    "depths": [1, 1],
}
CONVNEXT = {
    **PICTURE,
    "layer_scale_init_value": 1.0,
    "num_stages": 2,
    "hidden_sizes": [8, 16],
    "depths": [1, 1],
}
EFFICIENTNET = {
    **PICTURE,
    "width_coefficient": 0.25,
    "hidden_dim": 320,
    "kernel_sizes": [3, 3],
    "in_channels": [32, 16],
    "out_channels": [16, 24],
    "depthwise_padding": [],
    "strides": [1, 2],
    "num_block_repeats": [1, 1],
    "expand_ratios": [1, 6],
}
MOBILE = {**PICTURE, "depth_multiplier": 0.25}

MODELS: dict[str, Case] = {
    "gpt2": hf("GPT2LMHeadModel", "GPT2", words, GPT2),
    "gpt2-eager": hf("GPT2LMHeadModel", "GPT2", words, GPT2, attn_implementation="eager"),
    "bert": hf("BertForMaskedLM", "Bert", words, TEXT),
    "bert-base": hf("BertModel", "Bert", ids_alone, TEXT, projected),
    "llama": hf("LlamaForCausalLM", "Llama", words, DECODER),
    "llama-eager": hf("LlamaForCausalLM", "Llama", words, DECODER, attn_implementation="eager"),
    "llama-base": hf("LlamaModel", "Llama", ids_alone, DECODER, projected),
    "mistral": hf("MistralForCausalLM", "Mistral", words, DECODER),
    "qwen2": hf("Qwen2ForCausalLM", "Qwen2", words, DECODER),
    "qwen3": hf("Qwen3ForCausalLM", "Qwen3", words, DECODER),
    "falcon": hf("FalconForCausalLM", "Falcon", words, FALCON),
    "bloom": hf("BloomForCausalLM", "Bloom", words, BLOOM),
    "xlnet": hf("XLNetLMHeadModel", "XLNet", words, XLNET),
    "gemma": hf("GemmaForCausalLM", "Gemma", words, DECODER),
    "mixtral": hf("MixtralForCausalLM", "Mixtral", words, MIXTURE),
    "mixtral-eager": hf(
        "MixtralForCausalLM", "Mixtral", words, MIXTURE, experts_implementation="eager"
    ),
    "mixtral-batched": hf(
        "MixtralForCausalLM", "Mixtral", words, MIXTURE, experts_implementation="batched_mm"
    ),
    "qwen2-moe": hf("Qwen2MoeForCausalLM", "Qwen2Moe", words, QWEN_MOE),
    "qwen3-moe": hf("Qwen3MoeForCausalLM", "Qwen3Moe", words, QWEN_MOE),
    "gpt-oss": hf("GptOssForCausalLM", "GptOss", words, MIXTURE),
    "gpt-oss-eager": hf(
        "GptOssForCausalLM", "GptOss", words, MIXTURE, experts_implementation="eager"
    ),
    "gpt-oss-batched": hf(
        "GptOssForCausalLM", "GptOss", words, MIXTURE, experts_implementation="batched_mm"
    ),
    "llama4": hf("Llama4ForCausalLM", "Llama4Text", words, LLAMA4),
    "phimoe": hf("PhimoeForCausalLM", "Phimoe", words, PHIMOE),
    "mamba": hf("MambaForCausalLM", "Mamba", words, MAMBA),
    # The mixer, which is no layer itself, reads the weight of its convolution.
    "mamba2": evolve(hf("Mamba2ForCausalLM", "Mamba2", words, MAMBA2), unmet="*.conv1d"),
    "t5": hf("T5ForConditionalGeneration", "T5", translations, T5),
    "whisper": hf("WhisperForConditionalGeneration", "Whisper", spectrograms, WHISPER),
    "wav2vec2": hf("Wav2Vec2ForCTC", "Wav2Vec2", sounds, SOUND),
    "wavlm": hf("WavLMForCTC", "WavLM", sounds, SOUND),
    "vit": hf("ViTForImageClassification", "ViT", images, VIT),
    "swin": hf("SwinForImageClassification", "Swin", images, SWIN),
    "bit": hf("BitForImageClassification", "Bit", images, {**STAGES, "num_groups": 4}),
    "resnet": hf("ResNetForImageClassification", "ResNet", images, STAGES),
    "convnext": hf("ConvNextForImageClassification", "ConvNext", images, CONVNEXT),
    "efficientnet": hf("EfficientNetForImageClassification", "EfficientNet", images, EFFICIENTNET),
    "mobilenet-v1": hf("MobileNetV1ForImageClassification", "MobileNetV1", images, MOBILE),
    "mobilenet-v2": hf("MobileNetV2ForImageClassification", "MobileNetV2", images, MOBILE),
    "regnet": hf("RegNetForImageClassification", "RegNet", images, {**STAGES, "groups_width": 8}),
    "lstm": Case("nn.LSTM", partial(parts.recurrent, nn.LSTM, num_layers=2), words, continued),
    "gru": Case("nn.GRU", partial(parts.recurrent, nn.GRU), words, continued),
    "rnn": Case("nn.RNN", partial(parts.recurrent, nn.RNN), words, continued),
    "transformer": Case(
        "nn.Transformer", lambda: parts.LanguageModel(parts.Translation()), words, continued
    ),
    "encoder": Case("nn.TransformerEncoder", parts.encoder, words, continued),
    "attention": Case(
        "nn.MultiheadAttention", lambda: parts.LanguageModel(parts.Attending()), words, continued
    ),
    "lora": Case("a Linear with low-rank adapters", parts.adapted, vectors, classified),
    "standardized-conv": Case(
        "a Conv2d that standardizes its weight", parts.standardized, images, classified
    ),
    "weight-norm": Case(
        "weight_norm, parametrized", parts.normed_by_parametrization, vectors, classified
    ),
    "weight-norm-hooks": Case("weight_norm by hooks", parts.normed_by_hooks, vectors, classified),
    "bilinear": Case("nn.Bilinear", parts.Paired, vectors, classified),
    "conv-transpose": Case("nn.ConvTranspose1d and 2d", parts.transposed, images, classified),
    "depthwise-conv": Case(
        "depthwise Conv2d, squeeze and excite", parts.depthwise, images, classified
    ),
    "timm-vit": timm_model("test_vit", img_size=SIDE),
    "timm-nfnet": timm_model("test_nfnet"),
    "timm-convnext": timm_model("test_convnext"),
    "timm-efficientnet": timm_model("tf_efficientnet_b0"),
}
