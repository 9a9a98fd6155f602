"""One self-contained HTML page for a run, or for any set of runs."""
