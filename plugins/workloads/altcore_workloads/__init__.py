"""altcore's first-party workloads: what a run trains, on which data."""

__version__ = "0.1.0"
