"""A model under a recipe: its layers are found, and their operands are cast.

Uses numerics, recipes and formats.
"""

from altcore.quantization.again import Again
from altcore.quantization.attention import AttentionCall
from altcore.quantization.checks import FSDP_MARK
from altcore.quantization.coded_weights import CodedWeight, weight_codes
from altcore.quantization.context import this_rank
from altcore.quantization.discovery import (
    find_layers,
    has_transposed_weight,
    matrices,
    output_head,
    tied_matrices,
)
from altcore.quantization.optimizer import ROUNDABLE, check_roundable, roundable_state
from altcore.quantization.patched_forward import PatchedForward
from altcore.quantization.quantization import Quantization, is_quantized
from altcore.quantization.quantizer import random_key
from altcore.quantization.quantizing import bare_model, quantize_model
from altcore.quantization.shared_amax import amax_histories, share_amax
from altcore.quantization.state_checks import (
    OffGrid,
    check_moments,
    check_quantization_state,
    unstored,
)
from altcore.quantization.stored import MOVES
from altcore.quantization.weight_grids import WeightGrid

__all__ = [
    "FSDP_MARK",
    "MOVES",
    "ROUNDABLE",
    "Again",
    "AttentionCall",
    "CodedWeight",
    "OffGrid",
    "PatchedForward",
    "Quantization",
    "WeightGrid",
    "amax_histories",
    "bare_model",
    "check_moments",
    "check_quantization_state",
    "check_roundable",
    "find_layers",
    "has_transposed_weight",
    "is_quantized",
    "matrices",
    "output_head",
    "quantize_model",
    "random_key",
    "roundable_state",
    "share_amax",
    "this_rank",
    "tied_matrices",
    "unstored",
    "weight_codes",
]
