"""Writes docs/summary.md from the attrs class of the summary: ``make pages``."""

from __future__ import annotations

from pathlib import Path

from altcore.hooks import describe_settings
from altcore.runs import Summary

PAGE = Path(__file__).parents[1] / "docs" / "summary.md"

HEAD = """# The summary of a run

<!-- Written by tools/summary_page.py from altcore/runs/summary.py: change those. -->

Every run writes `summary.json` at its end, whatever the end was: finished, collapsed, stopped by a plugin,
interrupted or failed. `altcore runs show NAME` prints it, and `altcore runs show NAME --json` gives all of it. From
Python it is `Result.summary`, or `altcore.plugin.summary_of(path)` of any run. Resuming a run removes the file, so a
run that goes on has none; then the status is `unfinished`, and only what the record says so far is there.

The file has two keys more, by which a change is found. `records` has length and SHA-256 of the other files of the
record: the `.jsonl` files, `config.yaml` and `environment.json`. `digest` is the SHA-256 of all other keys as canonical
JSON. Whoever reads a file that does not match names it: see [checkpoints](checkpoints.md#the-record-of-a-run).

A value that does not apply, was not measured or is not finite is null: never NaN, and never 0. Rates are shares in
0..1, over the recorded steps.

## The verdict

The verdict says in one line what the loss curve shows. Its parts are separated by semicolons:

| verdict | when |
|---|---|
| `learned` | the last validation loss is at least 5 % below `unigram_entropy` of the workload's facts. Where there is none: below that of an evaluation before the first step by more than two standard errors over the evaluations' batches (by 5 % if an evaluation is one batch) |
| `did not learn` | otherwise |
| `learned by step N`, `did not learn by step N` | an error or a signal ended the run after its last evaluation, at step N. If the training loss rose since by so much that the validation loss would not be low enough, the run did not learn |
| `did not learn: N of M steps discarded` | more than half of the steps made no update |
| `..., still improving at the end` | over the last tenth of the steps that made an update (at least 20, at most 1000), the training loss fell by more than two standard errors |
| `collapsed at step N` | the [detector](hooks.md#what-is-a-collapse) found a collapse, and the run ended |
| `collapsed at step N, went on` | it found one, and the run went on; N is the first |
| `stopped by NAME at step N` | a plugin's `Stop` ended the run |
| `interrupted at step N`, `failed at step N` | a signal or an error did |
| `KEY changed after step N` | the run went on from step N with something else, which `--allow-change` allowed, or with other `max_steps`, or with a log that was changed or lost lines; `changes` has both values |

## Keys

"""


def page() -> str:
    """Return the whole page."""
    rows = [["key", "type", "meaning"], ["---"] * 3]
    for key in describe_settings(Summary):
        rows.append([f"`{key['name']}`", f"`{key['type']}`".replace("|", r"\|"), key["help"]])
    return HEAD + "".join(f"| {' | '.join(row)} |\n" for row in rows)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
