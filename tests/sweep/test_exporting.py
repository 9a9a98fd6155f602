"""One table of all jobs, with what its columns mean; retries that changed a setting stay apart."""

import csv
import json
import shutil
import tarfile

import pytest
from attrs import evolve
from helpers_cli import call
from helpers_sweeps import complete, fail, ledger_of

from altcore import durable
from altcore.errors import BadInput
from altcore.runs import contents
from altcore.sweep import SweepFile, collect, export, open_sweep, save_sweep
from altcore.sweep.archive import _checkpoint_problem

KEYS = {
    "variants": {"base": {}, "pure": {"recipe": "pure", "format": "E5M2"}},
    "seeds": 3,
    "columns": ["val_loss", "evaluation.accuracy", "x/y"],
}


@pytest.fixture
def ledger(tmp_path):
    """Two variants of three seeds; one run was retried with another batch, one job failed."""
    ledger = ledger_of(tmp_path, **KEYS)
    jobs = ledger.jobs()
    for loss, job in zip((1.0, 2.0), jobs, strict=False):
        lines = [{"step": 1, "x/y": 5}, {"step": 2, "x/y": loss}]
        complete(ledger, job, lines=lines, val_loss=loss, evaluation={"accuracy": 0.5})
    fail(ledger, jobs[2], "out of memory")
    complete(ledger, jobs[2], changed={"gpt.batch_size": 16}, val_loss=9.0)
    complete(ledger, jobs[3], status="collapsed", val_loss=float("nan"))
    fail(ledger, jobs[4], "ValueError: no")
    return ledger


def exported(ledger, out, **options):
    """Export the sweep; return the rows of its table and those of its statistics."""
    asked, _ = open_sweep("toy", str(ledger.folder.parent))
    export(asked, ledger, out, **options)
    return [list(csv.DictReader((out / f).open())) for f in ("runs.csv", "statistics.csv")]


def test_every_job_is_a_row(ledger, tmp_path):
    """With its factors, what became of it, and the columns of the sweep file."""
    rows, _ = exported(ledger, tmp_path / "out")
    assert list(rows[0]) == [
        *("job", "variant", "seed", "state", "collapsed", "attempts", "changed"),
        *("in_statistics", "seconds", "peak_memory_bytes", "peak_memory_of"),
        *("peak_gpu_memory_bytes", "gpu_utilization", "val_loss", "evaluation.accuracy", "x/y"),
    ]
    assert list(rows[0].values()) == [
        *("base-seed42", "base", "42", "completed", "false", "1", "", "true", "1.000000"),
        *("400000000.000000", "attempt", "", "", "1.000000", "0.500000", "1.000000"),
    ]
    assert [row["state"] for row in rows] == [*["completed"] * 4, "failed", "waiting"]
    assert rows[2]["changed"] == '{"gpt.batch_size": 16}'
    assert (rows[2]["in_statistics"], rows[2]["attempts"]) == ("false", "2")
    assert (rows[3]["collapsed"], rows[3]["val_loss"]) == ("true", "")
    assert rows[5]["attempts"] == "0"


def test_a_run_that_a_retry_changed_is_in_no_mean(ledger, tmp_path):
    """Unless that is asked for; one value has no deviation."""
    _, means = exported(ledger, tmp_path / "out")
    assert [(m["variant"], m["runs"]) for m in means] == [("base", "2"), ("pure", "1")]
    assert (means[0]["val_loss_mean"], means[1]["val_loss_mean"]) == ("1.500000", "")
    assert [(m["collapsed"], m["val_loss_n"]) for m in means] == [("0", "2"), ("1", "0")]
    assert float(means[0]["val_loss_sd"]) == pytest.approx(0.5**0.5)
    assert means[0]["evaluation.accuracy_sd"] == "0.000000"
    _, means = exported(ledger, tmp_path / "out", with_changed=True)
    assert (means[0]["runs"], means[0]["val_loss_mean"]) == ("3", "4.000000")


def test_without_columns_the_summarys_numbers_and_texts(tmp_path):
    """Those that any run has, but a factor only once."""
    ledger = ledger_of(tmp_path, grid={"learning_rate": [0.1, 0.2]})
    complete(ledger, ledger.jobs()[0], val_loss=1.0, seed=42, learned=True)
    rows, means = exported(ledger, tmp_path / "out")
    assert list(rows[0])[2:4] == ["learning_rate", "seed"]
    assert list(rows[0])[14:] == ["status", "verdict", "learned", "steps", "val_loss"]
    assert [m["learning_rate"] for m in means] == ["0.100000", "0.200000"]


def test_the_dictionary_and_where_it_comes_from(ledger, tmp_path):
    """Every column has its meaning; the tables have digests, the runs their environments."""
    rows, _ = exported(ledger, tmp_path / "out")
    page = (tmp_path / "out" / "README.md").read_text()
    for column in rows[0]:
        assert f"| `{column}` | " in page
    assert "| `peak_memory_of` | text | 'attempt': the last attempt alone; 'worker so far'" in page
    assert "| `x/y` | number | the last value of the measure x/y | 4 |" in page
    assert "without those whose settings a retry changed" in page
    assert "how many of these collapsed. A mean is of the `NAME_n` runs that have a finite" in page
    told = json.loads((tmp_path / "out" / "runs_metadata.json").read_text())
    assert told["states"] == {"completed": 4, "failed": 1, "waiting": 1}
    assert set(told["sha256"]) == {"runs.csv", "statistics.csv"}
    assert told["provenance"][0]["runs"] == 4
    assert "seeds: 3" in told["sweep_file"]
    assert (told["total_runs"], told["left_out"]) == (6, {})
    types = {"seed": "number", "state": "text", "collapsed": "yes or no", "changed": "JSON"}
    assert types.items() <= told["column_types"].items()


def test_an_environment_that_was_edited_is_named(tmp_path):
    """The metadata say in which the runs were made."""
    ledger = ledger_of(tmp_path)
    (job,) = ledger.jobs()
    complete(ledger, job, environment={"processor": "one"})
    asked, _ = open_sweep("toy", str(ledger.folder.parent))
    assert not export(asked, ledger, tmp_path / "out").problems
    file = ledger.run_of(job.name) / "environment.json"
    file.write_text(json.dumps({"processor": "two"}))
    problems = export(asked, ledger, tmp_path / "out").problems
    assert problems == {job.name: f"{file} is not what it was when the run was accepted"}
    file.unlink()
    assert export(asked, ledger, tmp_path / "out").problems == {job.name: f"{file} is missing"}


def test_a_mapping_of_columns_is_the_whole_table(tmp_path):
    """Of the runs that count; who is left out is named."""
    columns = {"run_id": "job", "lr": "learning_rate", "loss": "val_loss", "slope": "x/slope"}
    ledger = ledger_of(
        tmp_path, grid={"learning_rate": [1e-5, 2e-5]}, seeds=2, columns=columns, table="results"
    )
    first, second, changed, failed = ledger.jobs()
    complete(ledger, first, lines=[{"step": 1, "x/slope": None}], val_loss=1.5)
    complete(ledger, second, lines=[{"step": 1, "x/slope": "-0.25"}], val_loss=2.0)
    fail(ledger, changed, "nan loss")
    complete(ledger, changed, changed={"learning_rate": 0.05}, val_loss=3.0)
    fail(ledger, failed, "ValueError: no")
    asked, _ = open_sweep("toy", str(ledger.folder.parent))
    export(asked, ledger, tmp_path / "out")
    assert (tmp_path / "out" / "results.csv").read_text().splitlines() == [
        "run_id,lr,loss,slope",
        f"{first.name},0.000010,1.500000,",
        f"{second.name},0.000010,2.000000,-0.250000",
    ]
    told = json.loads((tmp_path / "out" / "results_metadata.json").read_text())
    assert told["left_out"] == {changed.name: "a retry changed it", failed.name: "failed"}
    assert told["column_types"] == {
        "run_id": "text",
        "lr": "number",
        "loss": "number",
        "slope": "number",
    }
    page = (tmp_path / "out" / "README.md").read_text()
    assert "a row for each of 2 of 4 jobs" in page
    assert f"- left out: {failed.name}, failed" in page
    export(asked, ledger, tmp_path / "all", with_changed=True)
    assert len((tmp_path / "all" / "results.csv").read_text().splitlines()) == 4
    page = (tmp_path / "all" / "README.md").read_text()
    assert f'- a retry changed {changed.name}: {{"learning_rate": 0.05}}' in page
    told = json.loads((tmp_path / "all" / "results_metadata.json").read_text())
    assert told["settings_changed"] == {changed.name: {"learning_rate": 0.05}}


def test_a_column_may_be_a_setting_as_the_run_had_it(tmp_path):
    """Whatever the grid has, and the last step's measure of that name."""
    names = ["config.learning_rate", "config.gpt.batch_size", "config.gpt.nothing"]
    columns = {"run": "job", "lr": names[0], "size": names[1], "no": names[2]}
    ledger = ledger_of(
        tmp_path, columns=columns, base={"learning_rate": 0.25, "gpt.batch_size": 2}, seeds=2
    )
    first, second = ledger.jobs()
    lines = [{"step": 1, "learning_rate": 1e-9}]
    for job, changed in ((first, {"gpt.batch_size": 3}), (second, {"learning_rate": 0.05})):
        fail(ledger, job, "nan loss")
        complete(ledger, job, changed=changed, lines=lines)
    asked, _ = open_sweep("toy", str(ledger.folder.parent))
    files = export(asked, ledger, tmp_path / "out", with_changed=True)
    assert (tmp_path / "out" / "runs.csv").read_text().splitlines() == [
        "run,lr,size,no",
        f"{first.name},0.250000,3,",
        f"{second.name},0.050000,2,",
    ]
    assert files.missing == [names[2]]
    page = (tmp_path / "out" / "README.md").read_text()
    assert "| `lr` | number | the setting learning_rate of the run, as a retry left it |" in page
    assert "learning_rate_mean" not in page


def test_a_text_of_several_lines_is_one_cell(tmp_path):
    """As what a progress bar left in an error: pandas takes each of the three for a row's end."""
    texts = ["50 %\rdone", "one\ntwo", "one\r\ntwo"]
    ledger = ledger_of(tmp_path, columns=["error"], seeds=3)
    for job, text in zip(ledger.jobs(), texts, strict=True):
        complete(ledger, job, error=text)
    asked, _ = open_sweep("toy", str(ledger.folder.parent))
    export(asked, ledger, tmp_path / "out")
    with (tmp_path / "out" / "runs.csv").open(newline="") as file:
        assert [row["error"] for row in csv.DictReader(file)] == texts


def test_names_that_no_run_has_are_named(tmp_path, capsys):
    """Be it a key of the summary, a value within one, or a measure; one that is null is there."""
    columns = ["val_los", "val_loss", "evaluation.nope", "evaluation.nul", "seconds.x"]
    ledger = ledger_of(tmp_path, columns=columns, series={"loss": "q/los"})
    summary = {"val_loss": 1.0, "evaluation": {"nul": None}}
    complete(ledger, ledger.jobs()[0], lines=[{"step": 1}], **summary)
    done = call(capsys, "sweep", "export", "toy", "--sweeps-dir", tmp_path)
    missing = ["evaluation.nope", "q/los", "seconds.x", "val_los"]
    told = f"no run has {', '.join(missing)}, neither in its summary nor as a measure"
    assert told in " ".join(done.err.split())
    told = json.loads((ledger.folder / "export" / "runs_metadata.json").read_text())
    assert told["missing"] == missing


def test_text_among_numbers_is_refused(tmp_path):
    ledger = ledger_of(tmp_path, columns=["x/y"], seeds=2)
    for job, value in zip(ledger.jobs(), (1.0, "big"), strict=True):
        complete(ledger, job, lines=[{"step": 1, "x/y": value}])
    asked, _ = open_sweep("toy", str(ledger.folder.parent))
    with pytest.raises(BadInput, match=r"columns\.x/y: 'big' of base-seed43 is no number"):
        export(asked, ledger, tmp_path / "out")


def test_the_course_of_measures_is_a_file_for_each_run(tmp_path):
    ledger = ledger_of(tmp_path, series={"loss_trajectory": "q/loss", "val": "val_loss"}, seeds=2)
    first, second = ledger.jobs()
    lines = [
        {"step": 1, "epoch": 0.25, "q/loss": 2.5},
        {"step": 2, "epoch": 0.5, "other": 1},
        {"step": 3, "q/loss": 2.0},
        {"step": 3, "val_loss": 1.75},  # an evaluation has a line of its own
    ]
    complete(ledger, first, lines=lines)
    complete(ledger, second, lines=[{"step": 1, "val_loss": 1.0}])
    asked, _ = open_sweep("toy", str(ledger.folder.parent))
    files = export(asked, ledger, tmp_path / "out").files
    assert files[-1] == tmp_path / "out" / "series"
    assert (files[-1] / f"{first.name}.csv").read_text().splitlines() == [
        "step,epoch,loss_trajectory,val",
        "1,0.250000,2.500000,",
        "3,,2.000000,1.750000",
    ]
    assert "| `val` | the measure val_loss |" in (tmp_path / "out" / "README.md").read_text()
    told = json.loads((tmp_path / "out" / "runs_metadata.json").read_text())
    assert f"series/{second.name}.csv" in told["sha256"]


def archived(path):
    with tarfile.open(path) as archive:
        return archive.getnames()


def test_archives_by_variant(ledger, tmp_path):
    """Of accepted runs, with the jobs' files, the same bytes each time; no link is followed."""
    run = ledger.run_of("base-seed42")
    for job in ledger.jobs():
        if ledger.run_of(job.name).is_dir():
            (ledger.run_of(job.name) / "checkpoints").mkdir()
    (run / "checkpoints" / "weights").write_text("x")
    (run / "outside").symlink_to(tmp_path)
    (run / ".lock").touch()
    asked, _ = open_sweep("toy", str(ledger.folder.parent))
    first = collect(asked, ledger, tmp_path / "one").archives
    assert {path.name: count for path, count in first.items()} == {
        "base.tar.gz": 3,
        "pure.tar.gz": 1,
    }
    names = archived(tmp_path / "one" / "base.tar.gz")
    files = ("job.json", "config.yaml", "metrics.jsonl", "summary.json")
    assert names[:4] == [f"base/base-seed42/{file}" for file in files]
    assert len(names) == 4 + 4 + 3
    again = collect(asked, ledger, tmp_path / "two").archives
    assert [p.read_bytes() for p in first] == [p.read_bytes() for p in again]
    with_weights = collect(asked, ledger, tmp_path / "one", checkpoints=True).archives
    assert "base/base-seed42/checkpoints/weights" in archived(next(iter(with_weights)))
    assert not list((tmp_path / "one").glob(".*"))


def test_archives_lack_runs_without_their_checkpoints(ledger, tmp_path):
    """If checkpoints are asked for; each such run is named."""
    for job in ledger.jobs():
        if ledger.run_of(job.name).is_dir() and job.name != "pure-seed42":
            (ledger.run_of(job.name) / "checkpoints").mkdir()
    asked, _ = open_sweep("toy", str(ledger.folder.parent))
    made = collect(asked, ledger, tmp_path / "out", checkpoints=True)
    assert {path.name: count for path, count in made.archives.items()} == {"base.tar.gz": 3}
    assert made.left_out["pure-seed42"].endswith("checkpoints is gone")
    assert not collect(asked, ledger, tmp_path / "out").left_out


def test_checkpoints_of_another_run_are_named(start):
    """As if two runs' folders of them had been exchanged; or the best one is gone."""
    a, b = (start(name=name, max_steps=1).run_directory for name in "ab")
    assert _checkpoint_problem(a) == ""
    shutil.rmtree(a / "checkpoints" / "step-00000001")
    assert "step-00000001 is missing" in _checkpoint_problem(a)
    shutil.rmtree(a / "checkpoints")
    (b / "checkpoints").rename(a / "checkpoints")
    assert _checkpoint_problem(a).endswith("step-00000000 is of another run")


def test_the_commands(ledger, capsys):
    """Into the sweep's folder unless it is said where."""
    where = ("toy", "--sweeps-dir", ledger.folder.parent)
    out = call(capsys, "sweep", "export", *where).out.splitlines()
    assert out[0] == str(ledger.folder / "export" / "runs.csv")
    out = call(capsys, "sweep", "collect", *where).out.splitlines()
    assert out[0] == f"{ledger.folder / 'archive' / 'base.tar.gz'}: 3 runs"
    empty = ledger_of(ledger.folder.parent / "other")
    done = call(capsys, "sweep", "collect", "toy", "--sweeps-dir", empty.folder.parent)
    assert "toy has no completed run" in done.err


def names_in(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def retire(ledger, *names):
    """Take jobs out of a sweep, as `--accept-changes` does; their runs go elsewhere, too."""
    for name in names:
        for path in (ledger.folder / "jobs" / name, ledger.run_of(name)):
            path.rename(ledger.folder / f"retired-{path.parent.name}-{name}")


def test_an_export_removes_what_an_earlier_one_left(tmp_path, capsys):
    """Its own files alone: others stay, those of another sweep, and those that were changed."""
    ledger = ledger_of(tmp_path, variants={"a": {}, "b": {}}, seeds=2, series={"loss": "loss"})
    for job in ledger.jobs():
        complete(ledger, job, lines=[{"step": 1, "loss": 1.0}])
    out = tmp_path / "out"
    asked, _ = open_sweep("toy", str(tmp_path))
    assert not export(asked, ledger, out).others
    of_another = {"sweep": "other", "sha256": {"theirs.csv": contents(out / "runs.csv")}}
    (out / "their_metadata.json").write_text(json.dumps(of_another))
    (out / "torn_metadata.json").write_text("{")
    for name in ("theirs.csv", "series/mine.csv"):
        (out / name).write_text((out / "runs.csv").read_text())
    (out / "series/b-seed43.csv").write_text("mine by now")
    retire(ledger, "a-seed43", "b-seed42", "b-seed43")
    made = export(evolve(asked, table="res"), ledger, out)
    assert made.others == [out / "series/b-seed43.csv"]
    assert names_in(out) == [
        *("README.md", "res.csv", "res_metadata.json", "series/a-seed42.csv"),
        *("series/b-seed43.csv", "series/mine.csv", "statistics.csv", "their_metadata.json"),
        *("theirs.csv", "torn_metadata.json"),
    ]
    forged = {"sweep": "toy", "sha256": {"../precious": contents(out / "res.csv")}}
    (tmp_path / "precious").write_text((out / "res.csv").read_text())
    (out / "x_metadata.json").write_text(json.dumps(forged))
    done = call(capsys, "sweep", "export", "toy", "--sweeps-dir", tmp_path, "--out", out)
    assert "precious stays: it is not what the sweep wrote there" in done.err
    assert (tmp_path / "precious").is_file()


def test_an_export_that_is_cut_off_leaves_nothing_unnamed(tmp_path, monkeypatch):
    """The list is written before the files that it names."""
    ledger = ledger_of(tmp_path, variants={"a": {}, "b": {}}, series={"loss": "loss"})
    for job in ledger.jobs():
        complete(ledger, job, lines=[{"step": 1, "loss": 1.0}])
    out = tmp_path / "out"
    asked, _ = open_sweep("toy", str(tmp_path))
    replace_text = durable.replace_text

    def cut_off(path, text):
        replace_text(path, text)
        if path.name == "b-seed42.csv":
            raise KeyboardInterrupt

    monkeypatch.setattr(durable, "replace_text", cut_off)
    with pytest.raises(KeyboardInterrupt):
        export(asked, ledger, out)
    monkeypatch.undo()
    assert (out / "series/b-seed42.csv").is_file()
    retire(ledger, "b-seed42")
    export(asked, ledger, out)
    assert "series/b-seed42.csv" not in names_in(out)


def test_a_collection_removes_archives_of_variants_that_are_gone(tmp_path, capsys):
    """One of a variant that the sweep still has may be the only copy of its runs."""
    ledger = ledger_of(tmp_path, variants={"a": {}, "b": {}, "c": {}, "d": {}})
    for job in ledger.jobs():
        complete(ledger, job)
    out = tmp_path / "out"
    where = ("toy", "--sweeps-dir", tmp_path, "--out", out)
    call(capsys, "sweep", "collect", *where)
    told = json.loads((out / "toy_archives.json").read_text())
    assert told["sha256"] == {f"{v}.tar.gz": contents(out / f"{v}.tar.gz") for v in "abcd"}
    assert (told["sweep"], told["without_result"]) == ("toy", {})
    (out / "e.tar.gz").write_text("mine")
    (out / "d.tar.gz").write_text("mine by now")
    retire(ledger, "b-seed42", "d-seed42")
    asked, _ = open_sweep("toy", str(tmp_path))
    save_sweep(evolve(asked, variants={"a": {}, "c": {}}), ledger.folder)
    ledger.run_of("c-seed42").rename(tmp_path / "elsewhere")
    done = call(capsys, "sweep", "collect", *where)
    assert names_in(out) == [
        *("a.tar.gz", "c.tar.gz", "d.tar.gz", "e.tar.gz", "toy_archives.json"),
    ]
    assert "c.tar.gz was written before: no run of its variant is completed now" in done.err
    assert "d.tar.gz stays: it is not what the sweep wrote there" in done.err
    told = json.loads((out / "toy_archives.json").read_text())
    assert set(told["sha256"]) == {"a.tar.gz", "c.tar.gz"}
    assert told["without_result"] == {"c-seed42": "waiting"}


def test_jobs_without_a_result_are_named(ledger, tmp_path, capsys):
    """On stderr, in the data dictionary and in the metadata. The exit code stays 0."""
    where = ("toy", "--sweeps-dir", tmp_path, "--out", tmp_path / "out")
    told = "4 of 6 jobs are completed; missing: pure-seed43 (failed), pure-seed44 (waiting)"
    for command in ("export", "collect"):
        done = call(capsys, "sweep", command, *where)
        assert (done.code, told in done.err) == (0, True)
    assert f"**{told}.**" in (tmp_path / "out/README.md").read_text()
    lacking = {"pure-seed43": "failed", "pure-seed44": "waiting"}
    for name in ("runs_metadata", "toy_archives"):
        found = json.loads((tmp_path / f"out/{name}.json").read_text())
        assert found["without_result"] == lacking
    many = ledger_of(tmp_path / "many", seeds=12)
    asked, _ = open_sweep("toy", str(many.folder.parent))
    lacking = export(asked, many, tmp_path / "many/out").lacking
    assert lacking.startswith("0 of 12 jobs are completed; missing: base-seed42 (waiting), ")
    assert lacking.endswith("base-seed51 (waiting), and 2 more")
    for job in many.jobs():
        complete(many, job)
    assert export(asked, many, tmp_path / "many/out").lacking == ""
    assert "completed; missing" not in (tmp_path / "many/out/README.md").read_text()


@pytest.mark.parametrize("command", ["export", "collect"])
@pytest.mark.parametrize("out", ["file", "file/below", "/proc/x"])
def test_a_folder_that_cannot_be_written_is_named(tmp_path, capsys, command, out):
    """With the option that gives another one."""
    complete(ledger_of(tmp_path), ledger_of(tmp_path).jobs()[0])
    (tmp_path / "file").touch()
    where = ("--sweeps-dir", tmp_path, "--out", tmp_path / out)
    done = call(capsys, "sweep", command, "toy", *where)
    assert done.code == 2
    assert done.message.startswith(f"altcore: --out {tmp_path / out}: cannot be written: ")


@pytest.mark.parametrize("command", ["export", "collect"])
def test_nothing_is_written_among_the_checkpoints_of_a_run(tmp_path, capsys, command):
    """An archive there would be no part of a checkpoint."""
    complete(ledger_of(tmp_path), ledger_of(tmp_path).jobs()[0])
    out = tmp_path / "mine/checkpoints"
    out.mkdir(parents=True)
    (tmp_path / "mine/environment.json").touch()
    done = call(capsys, "sweep", command, "toy", "--sweeps-dir", tmp_path, "--out", out)
    assert (done.code, list(out.iterdir())) == (2, [])
    assert f"--out: {out} is in the record of the run mine: checkpoints" in done.message


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"table": "statistics"}, "table: statistics is another file of the export"),
        ({"series": {"step": "loss"}}, "series: step: a column that each file of series has"),
    ],
)
def test_names_that_would_be_there_twice_are_refused(keys, told):
    with pytest.raises(BadInput, match=told):
        SweepFile(**keys)
