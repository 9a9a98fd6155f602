"""Damage to any file of a run is found or without effect, and costs no more than a few steps."""

import random
import shutil

import pytest
from helpers import metrics_bytes, weights_sha256
from helpers_checkpoints import without_resumes
from helpers_cli import call
from helpers_crashes import killed, points_of
from helpers_faults import PLUGINS, eventful_run, numbered
from structlog.testing import capture_logs

from altcore.errors import AltcoreError, BadInput
from altcore.run_files import LOGS, WHOLE_FILES
from altcore.runs import SUMMARY, altered, summary_of

RECORDS = (*LOGS, *WHOLE_FILES)


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A starter with two runs: ``whole``, and ``killed`` after the checkpoint of step 20."""
    with eventful_run(tmp_path_factory.mktemp("damage")) as start:
        points = points_of(lambda: start(PLUGINS, name="whole"))
        last = max(i for i, name in enumerate(points) if name == "rename step-00000020")
        killed(lambda: start(PLUGINS, name="killed"), last + 10)
        yield start


def harm(path, draw):
    """Flip a bit of a file, or cut it short; returns what was done."""
    data = bytearray(path.read_bytes())
    position = draw.randrange(len(data))
    if draw.random() < 0.7:
        data[position] ^= 1 << draw.randrange(8)
        path.write_bytes(data)
        return f"{path.name}: bit of byte {position}"
    path.write_bytes(data[:position])
    return f"{path.name}: cut to {position} bytes"


@pytest.mark.parametrize("case", numbered(200, 4000))
def test_damage_is_found_or_without_effect(start, case, tmp_path, capsys):
    """The run goes on and ends the same, or an error names the file; others are as they were."""
    draw = random.Random(case)
    runs = tmp_path / "runs"
    shutil.copytree(start.runs / "killed", runs / "killed")
    files = sorted(p for p in (runs / "killed").rglob("*") if p.is_file() and p.stat().st_size)
    file = files[case % len(files)]
    done = harm(file, draw)
    with capture_logs() as logs:
        try:
            type(start)(runs, start.corpus, start.keys).resume("killed")
            refused = ""
        except AltcoreError as error:
            refused = str(error)
    told = [str(line) for line in logs if line["log_level"] == "warning"]
    if refused:
        assert file.name == "config.yaml", (done, refused)
        # The data that it names may be missing: that is named by its key.
        assert "config.yaml" in refused or refused.startswith("gpt.data: "), refused
    elif file.name == "config.yaml" and any("the run was to make" in line for line in told):
        # A resume that was to go on for longer may have been killed: told, and no error.
        assert summary_of(runs / "killed")["steps"] > summary_of(start.runs / "whole")["steps"], (
            done
        )
    else:
        assert weights_sha256(runs / "killed") == weights_sha256(start.runs / "whole"), done
        if not any(file.name in line for line in told):
            assert metrics_bytes(runs / "killed") == metrics_bytes(start.runs / "whole"), done
            assert without_resumes(runs / "killed") == without_resumes(start.runs / "whole"), done
    if case % 20 == 0:
        shutil.copytree(start.runs / "whole", runs / "whole")
        found = call(capsys, "runs", "list", "--runs-dir", runs)
        assert found.code == 0
        assert "whole" in found.out


def test_a_configuration_that_ends_early_is_named(start, tmp_path):
    """Whichever keys a cut at the end of a line takes, the refusal names the file."""
    whole = (start.runs / "killed" / "config.yaml").read_text().splitlines(keepends=True)
    lost = 0
    for lines in range(0, len(whole), 4):
        runs = tmp_path / str(lines)
        shutil.copytree(start.runs / "killed", runs / "killed")
        (runs / "killed" / "config.yaml").write_text("".join(whole[:lines]))
        with capture_logs():
            try:
                type(start)(runs, start.corpus, start.keys).resume("killed")
            except AltcoreError as error:
                assert "config.yaml" in str(error), lines  # noqa: PT017 - it may go on as well
                lost += 1
            else:
                assert weights_sha256(runs / "killed") == weights_sha256(start.runs / "whole")
        shutil.rmtree(runs)
    assert lost > len(whole) // 8


@pytest.mark.parametrize("case", numbered(200, 4000))
def test_damage_to_a_finished_run_is_named(start, case):
    """Or the file says the same as before."""
    run, draw = start.runs / "whole", random.Random(case)
    file = run / RECORDS[case % len(RECORDS)]
    before, meant = file.read_bytes(), summary_of(run)
    try:
        done = harm(file, draw)
        told = altered(run)
        try:
            is_same = file.name == SUMMARY and summary_of(run) == meant
        except BadInput as error:
            told[file.name] = str(error)
        assert str(file) in told.pop(file.name, "") or is_same, done
        assert not told, done
    finally:
        file.write_bytes(before)
