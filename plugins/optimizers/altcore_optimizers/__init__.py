"""altcore's first-party optimizers: how a run turns gradients into updates."""

__version__ = "0.1.0"
