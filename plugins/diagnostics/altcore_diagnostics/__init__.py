"""altcore's first-party diagnostics: they measure, and change no number."""

__version__ = "0.1.0"
