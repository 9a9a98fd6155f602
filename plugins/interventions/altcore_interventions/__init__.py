"""altcore's first-party interventions: what a run may do when training breaks."""

__version__ = "0.1.0"
