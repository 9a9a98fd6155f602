"""Which part of a model a layer is, by its name."""

from __future__ import annotations

import re

ATTENTION, MLP, EMBEDDING, CLASSIFIER = "attention", "mlp", "embedding", "classifier"
CONVOLUTION, NORMALIZATION, OTHER = "convolution", "normalization", "other"
TYPES = (ATTENTION, MLP, EMBEDDING, CLASSIFIER, CONVOLUTION, NORMALIZATION, OTHER)

_RULES = (
    # A norm lies within the part that it normalizes.
    (NORMALIZATION, r"(^|\.)(ln_\w+|ln\d*|bn\d*|\w*norm\d*)$"),
    # nanoGPT: transformer.wte, transformer.h.0.attn.c_attn, transformer.h.0.mlp.c_fc, lm_head
    (ATTENTION, r"(^|[._])attn|c_attn"),
    (MLP, r"(^|\.)mlp(\.|$)|c_fc"),
    (EMBEDDING, r"(^|\.)(wte|wpe)(\.|$)"),
    (CLASSIFIER, r"(^|\.)lm_head(\.|$)"),
    # Hugging Face: BERT, GPT-NeoX, Llama, T5, ViT, experts
    (ATTENTION, r"attention|(^|\.)([qkvo]_proj|[qkv]_lin|query|key|value|query_key_value|qkv)$"),
    (CLASSIFIER, r"(^|\.)(embed_out|cls|score|qa_outputs|(\w+_)?classifier|heads?)(\.|$)"),
    (
        MLP,
        r"densereludense|feed_?forward|(^|\.)(ffn|fc\d|lin\d|experts|\w*moe\w*|intermediate)(\.|$)",
    ),
    (MLP, r"(^|\.)(gate|up|down|gate_up)_proj$|dense_h_to_4h|dense_4h_to_h|(^|\.)output\.dense$"),
    (EMBEDDING, r"embed|(^|\.)shared$"),
    # ResNet: conv1, layer1.0.downsample.0, fc
    (CONVOLUTION, r"(^|\.)(conv\w*|downsample|shortcut)(\.|$)"),
    (CLASSIFIER, r"(^|\.)fc$"),
)
"""The first that is found decides. Names are compared in lower case, without .weight and .bias."""


def layer_type(name: str) -> str:
    """Return the type of a layer or parameter: attention, mlp, embedding, classifier, ...

    >>> layer_type("transformer.h.0.attn.c_proj"), layer_type("transformer.h.0.mlp.c_proj")
    ('attention', 'mlp')
    """
    plain = re.sub(r"\.(weight|bias)$", "", name.lower())
    return next((kind for kind, rule in _RULES if re.search(rule, plain)), OTHER)
