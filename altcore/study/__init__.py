"""Studies: many runs that answer one question, by public calls of the engine only.

`explain` asks where a format breaks, `compare` how formats and optimizers compare. Both train on
identical batches, pair every run by seed with a float32 twin, and give intervals.
"""
