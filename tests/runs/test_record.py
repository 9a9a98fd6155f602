"""The run directory: names, one writer, strict JSON, a full disk, and lines that come late."""

import fcntl
import json
import math
import multiprocessing
from pathlib import Path

import pytest
import torch

from altcore.config import TrainConfig, check_name
from altcore.errors import BadInput, NoSpace
from altcore.runs import Recorder, RunDirectory, read_lines, record
from altcore.runs.record import to_host

BAD_NAMES = [
    "../escape", "/tmp/absolute", "a/b", "..", ".", ".hidden", "a\0b", "x" * 300,
    "<script>alert(1)</script>", "", " ", "a b", "a\n", "-flag", "a..b", "ünï", "a\\b", "con:",
]  # fmt: skip


def create(tmp_path, **keys):
    """Make a run's directory."""
    return RunDirectory.create(TrainConfig(runs_dir=str(tmp_path / "runs"), **keys))


# -------------------------------------------------------------------------------- names


@pytest.mark.parametrize("name", BAD_NAMES)
def test_what_is_no_name_is_refused(tmp_path, name):
    """As a new run's name, and as that of one to find: never a write or a read elsewhere."""
    with pytest.raises(BadInput, match="is not a name"):
        create(tmp_path, name=name)
    with pytest.raises(BadInput, match="is not a name"):
        record.find_run(name, str(tmp_path / "runs"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["a", "E4M3-pure.2", "x" * 100, "9_lives"])
def test_names_are_names(tmp_path, name):
    """Letters, digits, dot, dash and underscore."""
    assert check_name(name, "name") == name
    assert create(tmp_path, name=name).path.name == name


def test_a_name_is_new(tmp_path):
    """The message offers another name and --resume; the run that exists is not touched."""
    create(tmp_path, name="r").close()
    with pytest.raises(BadInput, match=r"name: .* exists; .* --resume r"):
        create(tmp_path, name="r")


def test_names_are_made_of_format_and_recipe(tmp_path):
    """A number follows where the name is taken; what is no file name is left out."""
    from altcore import float_format

    fmt = float_format("../E<3>", 3, 2)
    names = [create(tmp_path, format=fmt).path.name for _ in range(3)]
    assert names == ["e-3-master", "e-3-master-2", "e-3-master-3"]
    assert create(tmp_path).path.name == "none-master"


def test_an_unknown_run_offers_the_nearest(tmp_path):
    """Only folders that hold a configuration are runs."""
    (tmp_path / "e4m3-pure").mkdir()
    (tmp_path / "e4m3-pure" / "config.yaml").touch()
    with pytest.raises(BadInput, match=r"no run 'e4m3-pur' .*did you mean e4m3-pure"):
        record.find_run("e4m3-pur", str(tmp_path))


# --------------------------------------------------------------------------------- lock


def _try_to_open(path, answer):
    try:
        RunDirectory.open(path)
    except BadInput as error:
        answer.put(str(error))
    else:
        answer.put("opened")


def _ask_another_process(path):
    context = multiprocessing.get_context("fork")
    answer = context.Queue()
    process = context.Process(target=_try_to_open, args=(path, answer))
    process.start()
    said = answer.get(timeout=30)
    process.join()
    return said


def test_two_processes_never_write_one_run(tmp_path):
    """While one holds it another is refused; when it is closed, or died, the next may."""
    directory = create(tmp_path, name="r")
    assert _ask_another_process(directory.path) == "run r is being written by another process"
    directory.close()
    assert _ask_another_process(directory.path) == "opened"
    # The other process is gone, and its lock with it.
    RunDirectory.open(directory.path).close()


def test_a_held_run_is_not_touched(tmp_path):
    """The refusal comes before anything is written."""
    directory = create(tmp_path, name="r")
    directory.append("metrics.jsonl", {"step": 1})
    before = {p.name: p.stat().st_mtime_ns for p in directory.path.iterdir() if p.is_file()}
    with pytest.raises(BadInput, match="another process"):
        RunDirectory.open(directory.path)
    del before[".lock"]
    assert {n: (directory.path / n).stat().st_mtime_ns for n in before} == before
    directory.close()
    with (directory.path / ".lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


# ---------------------------------------------------------------------------------- JSON


def test_numbers_that_are_not_finite_round_trip(tmp_path):
    """They are written as words, so that any JSON reader can read the file, and read as numbers."""
    directory = create(tmp_path, name="r")
    line = {
        "step": 3, "loss": math.nan, "grad_norm": math.inf, "low": -math.inf, "none": None,
        "histogram": [1.5, math.nan, math.inf], "nested": {"deep": {"x": -math.inf}},
    }  # fmt: skip
    directory.append("metrics.jsonl", line)
    text = (directory.path / "metrics.jsonl").read_text()

    def refuse(word):
        raise AssertionError(f"{word} is no JSON")

    assert json.loads(text, parse_constant=refuse)["loss"] == "nan"
    (back,) = read_lines(directory.path / "metrics.jsonl")
    assert repr(back) == repr(line)


def test_words_of_events_stay_words(tmp_path):
    """An event called nan is a word, and so is a reason."""
    directory = create(tmp_path, name="r")
    line = {"step": 1, "event": "nan", "reason": "inf", "value": math.nan}
    directory.append("events.jsonl", line)
    (back,) = read_lines(directory.path / "events.jsonl")
    assert repr(back) == repr(line)


def test_floats_keep_every_bit(tmp_path):
    """What is read back is what was written, to the last bit."""
    directory = create(tmp_path, name="r")
    values = [0.1, 1 / 3, 5e-324, 1.7976931348623157e308, 2**60 + 1, -0.0]
    directory.append("metrics.jsonl", {"step": 1, "values": values})
    (back,) = read_lines(directory.path / "metrics.jsonl")
    assert [repr(v) for v in back["values"]] == [repr(v) for v in values]


def test_a_torn_last_line_is_left_out(tmp_path):
    """At whatever byte it was torn, the lines before it are read."""
    path = tmp_path / "m.jsonl"
    whole = '{"step": 1, "loss": 2.5}\n{"step": 2, "loss": "nan"}\n'
    for length in range(len(whole)):
        path.write_text(whole[:length])
        lines = read_lines(path)
        expected = whole[:length].count("}")
        assert [x["step"] for x in lines] == [1, 2][:expected], length


def test_a_line_after_a_torn_one_is_not_lost(tmp_path):
    """Going on after a crash begins on a line of its own."""
    directory = create(tmp_path, name="r")
    (directory.path / "events.jsonl").write_text('{"step": 1}\n{"step": 2, "ev')
    directory.append("events.jsonl", {"step": 3})
    directory.append("events.jsonl", {"step": 4})
    assert [x["step"] for x in read_lines(directory.path / "events.jsonl")] == [1, 3, 4]
    assert (directory.path / "events.jsonl").read_text().count("\n\n") == 0


def test_drop_after_forgets_what_a_resumed_run_writes_anew(tmp_path):
    """Metrics, evaluations and timings after the step go, to the byte; events stay."""
    directory = create(tmp_path, name="r")
    for step in range(1, 5):
        directory.append("metrics.jsonl", {"step": step, "loss": math.nan if step == 2 else 1 / 3})
        directory.append("timings.jsonl", {"step": step, "seconds": 0.1})
        directory.append("events.jsonl", {"step": step, "event": "x"})
        if step == 2:
            kept = {
                f: (directory.path / f).read_bytes() for f in ("metrics.jsonl", "timings.jsonl")
            }
    directory.append("metrics.jsonl", {"step": 4, "val_loss": 1.0})
    directory.close()
    events = (directory.path / "events.jsonl").read_bytes()
    directory = RunDirectory.open(directory.path)
    directory.drop_after(2)
    assert {f: (directory.path / f).read_bytes() for f in kept} == kept
    assert (directory.path / "events.jsonl").read_bytes() == events
    directory.append("metrics.jsonl", {"step": 3})
    assert [x["step"] for x in read_lines(directory.path / "metrics.jsonl")] == [1, 2, 3]


# ---------------------------------------------------------------------------- no space


def test_a_full_disk_names_the_file_and_the_bytes(tmp_path):
    """A line that does not fit is an error of its own, with exit code 3; closing adds no other."""
    directory = create(tmp_path, name="r")
    directory._files["metrics.jsonl"] = Path("/dev/full").open("a")  # noqa: SIM115 - closed with it
    with pytest.raises(
        NoSpace, match=r"no space left to write .*r/metrics\.jsonl \(12 bytes needed\)"
    ) as caught:
        directory.append("metrics.jsonl", {"step": 1})
    assert caught.value.exit_code == 3
    directory.close()
    RunDirectory.open(directory.path).close()


@pytest.mark.parametrize("method", ["write_text", "replace", "open"])
def test_a_full_disk_leaves_whole_files_as_they_were(tmp_path, monkeypatch, method):
    """A file is replaced at once or not at all, and a new one that cannot be made is named."""
    directory = create(tmp_path, name="r")
    directory.write("config.yaml", "old: true\n")

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(tmp_path), method, full)
    how, what = {"open": (directory.append, {"step": 1})}.get(method, (directory.write, "new\n"))
    with pytest.raises(NoSpace, match="no space left to write"):
        how("metrics.jsonl" if method == "open" else "config.yaml", what)
    monkeypatch.undo()
    assert (directory.path / "config.yaml").read_text() == "old: true\n"


def test_a_folder_that_cannot_be_written_is_bad_input(tmp_path):
    """Before anything is built, with the key named."""
    (tmp_path / "file").touch()
    with pytest.raises(BadInput, match=r"runs_dir: .*cannot be written"):
        RunDirectory.create(TrainConfig(runs_dir=str(tmp_path / "file" / "runs")))


# ----------------------------------------------------------------------------- recorder


def test_to_host_keeps_kinds_and_shapes():
    """Scalars become numbers, vectors lists, integers stay integers, other values as they are."""
    host = to_host(
        {
            "a": torch.tensor(1.5),
            "b": torch.tensor([1, 2]),
            "c": torch.tensor(True),
            "d": None,
            "e": 7,
            "f": torch.tensor([math.nan]),
            "g": torch.zeros(0),
            "h": torch.tensor(2**52 + 1),
        }
    )
    assert repr(host) == repr(
        {"a": 1.5, "b": [1, 2], "c": 1, "d": None, "e": 7, "f": [math.nan], "g": [], "h": 2**52 + 1}
    )
    assert to_host({}) == {}


def test_lines_are_complete_one_step_later():
    """What is measured after the optimizer comes with the next read; order and values are kept."""
    told = []
    recorder = Recorder(told.append)
    for step in (1, 2, 3):
        recorder.read({"loss": torch.tensor(step / 2)})
        recorder.begin({"step": step})
        recorder.add({"late": torch.tensor(step * 10)})
        recorder.end_step()
        assert [x["step"] for x in told] == list(range(1, step))
    recorder.flush()
    assert told == [{"step": s, "late": s * 10} for s in (1, 2, 3)]
    recorder.flush()
    assert len(told) == 3


def test_steps_that_are_not_recorded_have_no_line():
    """Their measures go nowhere, and the line before them is told all the same."""
    told = []
    recorder = Recorder(told.append)
    for step in (1, 2, 3, 4):
        recorder.read({})
        if step % 2 == 0:
            recorder.begin({"step": step})
        recorder.add({"late": torch.tensor(step)})
        recorder.end_step()
    recorder.flush()
    assert told == [{"step": 2, "late": 2}, {"step": 4, "late": 4}]


# ------------------------------------------------------------------------------ summary


def test_a_run_that_is_not_over_says_so(tmp_path):
    """From its metrics while it runs, from its last end afterwards, and anew once resumed."""
    directory = create(tmp_path, name="r")
    directory.append("events.jsonl", {"step": 0, "event": "start"})
    directory.append("metrics.jsonl", {"step": 1, "loss": 2.0})
    assert record.summary_of(directory.path) == {"name": "r", "status": "unfinished", "steps": 1}
    directory.append("events.jsonl", {"step": 2, "event": "end", "status": "finished", "steps": 2})
    assert record.summary_of(directory.path)["status"] == "finished"
    directory.append("events.jsonl", {"step": 2, "event": "resume"})
    assert record.summary_of(directory.path)["status"] == "unfinished"
