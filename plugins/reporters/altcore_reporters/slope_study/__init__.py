"""The verdicts of the loss-slope study: its hypotheses, and whether its data can be trusted."""
