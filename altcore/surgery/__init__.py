"""Surgery: where quantization happens in a model, without a line of the model changed."""

from altcore.surgery.quantization import Quantization, quantize_model

__all__ = ["Quantization", "quantize_model"]
