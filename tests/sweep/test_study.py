"""A small sweep from its file to its table, by the commands, with a job that fails at first."""

import csv
import re
import shutil

from helpers_cli import call

FILE = """
base: {gpt.size: tiny, gpt.n_layer: 1, gpt.block_size: 8, max_steps: 2, warmup_steps: 0,
  eval_steps: 1, no_plugins: [progress, page, failure-report], data: CORPUS}
variants: {base: {}, bare: {data: HERE/words.txt, learning_rate: 0.01}}
requires: [val_loss, {name: loss, every: 1}]
columns: [final_loss, val_loss]
"""


def test_a_sweep_from_its_file_to_its_table(tmp_path, corpus, capsys):
    """The data of one variant come later: its job fails, is tried again, and is in the runbook."""
    file = tmp_path / "study.yaml"
    file.write_text(FILE.replace("CORPUS", str(corpus)).replace("HERE", str(tmp_path)))

    def sweep(command, *more):
        return call(capsys, "sweep", command, *more, "--sweeps-dir", tmp_path / "sweeps")

    done = sweep("run", file)
    assert done.code == 1
    told = [re.sub(r"after \d+ s: .* \(", "after (", line) for line in done.err.splitlines()]
    assert told[1:] == [
        "bare-seed42: begins (0 of 2 jobs done)",
        "bare-seed42: failed after (1 of 2 jobs done)",
        "base-seed42: begins (1 of 2 jobs done)",
        "base-seed42: finished after (2 of 2 jobs done)",
    ]
    assert "study: 1/2 runs completed in " in done.err + done.out
    assert "50.0 % failed; all attempts took " in done.out
    assert ", CPU " in done.out
    assert " GB at most" in done.out
    done = sweep("verify", "study")
    assert (done.code, done.out.splitlines()[0]) == (1, "1/2 runs completed, 1 run failed")
    assert sweep("status", "study").code == 1
    shutil.copy(corpus, tmp_path / "words.txt")
    assert sweep("run", "study").code == 1
    assert sweep("retry", "study", "bare-seed42", "--set", "learning_rate=0.02").code == 0
    done = sweep("run", "study")
    assert done.code == 0
    assert "study: 2/2 runs completed in " in done.out
    assert (sweep("status", "study").code, sweep("verify", "study").code) == (0, 0)
    told = (tmp_path / "sweeps" / "study" / "runbook.md").read_text()
    assert "- **bare-seed42**: `BadInput: gpt.data: " in told
    assert told.endswith("tried again by people with learning_rate 0.02\n")
    sweep("export", "study")
    table = tmp_path / "sweeps" / "study" / "export" / "runs.csv"
    rows = csv.DictReader(table.read_text().splitlines())
    by_variant = {row["variant"]: row for row in rows}
    assert by_variant["bare"]["changed"] == '{"learning_rate": 0.02}'
    assert by_variant["bare"]["in_statistics"] == "false"
    assert float(by_variant["base"]["final_loss"]) > 0
