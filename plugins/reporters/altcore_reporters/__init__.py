"""altcore's first-party reporters: they tell people how a run goes and where it broke."""

__version__ = "0.1.0"
