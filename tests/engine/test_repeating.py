"""The saved configuration alone repeats a run, whatever its formats; a changed one is noticed."""

import shutil
import subprocess
import sys

import pytest
import yaml
from attrs import define
from helpers import forget_installed
from helpers_cli import TINY, call
from structlog.testing import capture_logs

import altcore
from altcore import BadInput, float_format, hookimpl, table_format
from altcore.config import load_config
from altcore.errors import Source
from altcore.formats import AnyFormat, format_digest, get_format
from altcore.hooks import ChangeRecipe, setting
from altcore.runs import load_newest, read_lines
from altcore.study.variants import finer

MINE = {"name": "MINE", "values": [-1.0, -0.25, 0.0, 0.25, 1.0]}
FORMATS = {
    "table": table_format("MINE", MINE["values"]),
    "plain": MINE,
    "float": float_format("E4M1-SPARSE", 4, 1, subnormals=False),
    "finer": finer(get_format("E4M3")),
    "blocks": {"name": "BLOCKS", "element": "E2M1", "block": 8, "rule": "rceil"},
}


def losses(run):
    return [x["loss"] for x in read_lines(run / "metrics.jsonl") if "loss" in x]


def held(run):
    """The configuration that a run's directory holds."""
    return yaml.safe_load((run / "config.yaml").read_text())


@pytest.mark.parametrize("fmt", FORMATS.values(), ids=FORMATS)
def test_a_run_in_a_format_that_nobody_knows_is_repeated(fmt, start, tmp_path):
    """From config.yaml in another folder; and the format is the same to the bit."""
    first = start(format=fmt).run_directory
    config = load_config(
        first / "config.yaml", [("runs_dir", str(tmp_path / "again"), Source(flag="--set"))]
    )
    assert config.format == get_format(fmt)
    again = altcore.train(config).run_directory
    assert losses(again) == losses(first)
    assert {**held(again), "runs_dir": None} == {**held(first), "runs_dir": None}


def test_formats_of_settings_have_names_of_their_own(start):
    """Another format than the recipe's under its name is refused, before anything is written."""
    with pytest.raises(BadInput, match="format MINE: two formats"):
        start(["rollback"], format=MINE, rollback__format=MINE | {"values": [-1, 0, 1]})
    assert not start.runs.exists()


def test_a_run_is_repeated_where_its_files_and_objects_are_not(start, tmp_path):
    """By the command, in another process and folder: every format is in the configuration."""
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(MINE))
    recipe = {
        "weight": str(tmp_path / "mine.yaml"),
        "activation": {"format": str(tmp_path / "mine.yaml"), "scaling": "channel"},
        "gradient": float_format("WIDE", 8, 6),
        "layers": {"transformer.h.0.*": {"activation": MINE | {"name": "INNER"}}},
    }
    first = start(["rollback"], recipe=recipe, rollback__format=str(tmp_path / "mine.yaml"))
    (tmp_path / "mine.yaml").unlink()
    there = tmp_path / "there"
    there.mkdir()
    shutil.copy(first.run_directory / "config.yaml", there)
    command = [sys.executable, "-c", "from altcore.cli import main; main()"]
    command += ["train", "--config", "config.yaml", "--set", "runs_dir=runs", "--name", "again"]
    subprocess.run(command, cwd=there, check=True, capture_output=True)
    assert losses(there / "runs" / "again") == losses(first.run_directory)
    assert held(there / "runs" / "again")["settings"]["rollback"]["format"] == MINE


def test_a_format_is_given_by_its_file(start, tmp_path, capsys, corpus):
    """On the command line and in a configuration's file; a bad one is refused by name."""
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"values": MINE["values"]}))
    tiny = [*TINY, "--data", corpus, "--steps", "1", "--set", f"runs_dir={start.runs}"]
    assert call(capsys, "train", "--format", path, "--name", "run", *tiny).code == 0
    assert held(start.runs / "run")["format"] == {**MINE, "name": "mine"}
    (tmp_path / "config.yaml").write_text(f"format: {path}\n")
    assert load_config(tmp_path / "config.yaml").format == get_format(path)
    assert "name           mine" in call(capsys, "formats", "show", path).out
    path.write_text("{name: MINE, valeus: [0, 1]}")
    found = call(capsys, "train", "--format", path, "--name", "bad", *tiny)
    assert found.code == 2
    assert "did you mean values" in found.message
    assert str(path) in found.message
    assert not (start.runs / "bad").exists()


def test_large_tables_are_written_once(start):
    """What a recipe says of every layer and operand is one table and references to it."""
    fmt = table_format("LARGE", [v / 500 for v in range(-500, 501)])
    recipe = {"weight": fmt, "layers": {"transformer.h.0.*": {"activation": fmt, "gradient": fmt}}}
    text = (start(recipe=recipe).run_directory / "config.yaml").read_text()
    assert text.count("LARGE") == 1
    assert len(text) < 20_000


def test_installed_formats_are_held_by_name_with_their_digests(start):
    """Those of the recipe, of the run and of settings, their defaults included."""
    found = held(start(["rollback"], recipe="mxfp8", rollback__format="E5M2").run_directory)
    names = {"MXFP8-E4M3-rceil", "E5M2"}
    assert found["format_digests"] == {n: format_digest(get_format(n)) for n in names}
    assert found["settings"]["rollback"] == {"format": "E5M2"}
    found = held(start(format="E3M3").run_directory)
    assert (found["format"], set(found["format_digests"])) == ("E3M3", {"E3M3"})
    assert held(start().run_directory)["format_digests"] == {}


# --------------------------------------------------------------------------------- checkpoints


@define(eq=False)
class Shift:
    """Changes to a format in the first step."""

    to: AnyFormat = setting(help="the format")

    @hookimpl
    def pre_backward(self, run, step):
        return ChangeRecipe(format=self.to, reason="now") if step.index == 1 else None


def test_a_checkpoint_holds_whole_what_nobody_knows(start, shelf):
    """A format that a plugin changed to is there on resume, and in the checkpoint's plan."""
    shelf.install("intervention", "shift", Shift)
    mine = FORMATS["float"]
    keys = {"format": "E4M3", "shift__to": mine, "min_lr_ratio": 1.0}
    whole = start(["shift"], max_steps=4, **keys)
    part = start(["shift"], max_steps=2, name="part", **keys)
    state = load_newest(part.run_directory / "checkpoints").state
    plan = state["quantization"]["plan"]
    assert mine.to_plain() in [c["format"] for casts in plan.values() for c in casts.values()]
    assert state["quantization"]["formats"] == {}
    start.resume("part", max_steps=4)
    assert losses(part.run_directory) == losses(whole.run_directory)


def replaced(shelf, fmt, version):
    """Install a format as another version of one distribution."""
    for old in shelf.folder.glob("acme-*.dist-info"):
        shutil.rmtree(old)
    shelf.install("format", "SHELF", fmt, "acme", version)


@pytest.mark.parametrize("where", ["format", "setting"])
def test_a_changed_format_is_noticed_on_resume(where, start, shelf, capsys):
    """By name, with exit code 2, before anything is written; the version of then goes on."""
    before, after = (table_format("SHELF", [-1, 0, 0.5, top]) for top in (1, 2))
    replaced(shelf, before, "1.0")
    if where == "format":
        first = start(format="SHELF", name="run").run_directory
    else:
        first = start(["rollback"], format="E4M3", rollback__format="SHELF", name="run")
        first = first.run_directory
    files = {p: p.read_bytes() for p in sorted(first.rglob("*")) if p.is_file()}
    replaced(shelf, after, "1.1")
    resume = ("train", "--resume", "run", "--steps", "5", "--set", f"runs_dir={start.runs}")
    found = call(capsys, *resume)
    assert found.code == 2
    assert "format was SHELF of acme 1.0 (" in found.message
    assert "is SHELF of acme 1.1 (" in found.message
    assert found.message.endswith("--allow-change format goes on all the same")
    assert {p: p.read_bytes() for p in sorted(first.rglob("*")) if p.is_file()} == files
    with pytest.raises(BadInput, match="format SHELF"):
        load_config(first / "config.yaml")
    replaced(shelf, before, "1.2")
    assert start.resume("run", max_steps=5).steps_completed == 5


@pytest.mark.parametrize("keys", [{"format": "SHELF"}, {"recipe": {"weight": "SHELF"}}], ids=str)
def test_a_format_that_is_gone_is_named_with_its_distribution(keys, start, shelf):
    """And with the line of the record; of the other formats, only the nearest are listed."""
    shelf.install("format", "SHELF", table_format("SHELF", [-1, 0, 1]), "acme", "1.0")
    first = start(name="run", max_steps=1, **keys).run_directory
    shutil.rmtree(shelf.folder / "acme-1.0.dist-info")
    forget_installed()
    with pytest.raises(BadInput, match=r"'SHELF'.*: SHELF came from acme 1\.0: install it") as said:
        start.resume("run", max_steps=2)
    assert f"given in {first / 'config.yaml'}, line " in str(said.value)
    assert "E4M3" not in str(said.value)


@pytest.mark.parametrize(
    ("plugin", "settings"),
    [
        ("rollback", {"rollback__format": "SHELF"}),
        ("mantissa-shift", {"mantissa-shift__chain": {"E4M3": "SHELF"}}),
        ("shift", {"shift__to": "SHELF"}),
        ("shift", {}),
    ],
    ids=str,
)
def test_a_format_of_settings_that_is_gone_is_named_likewise(plugin, settings, start, shelf):
    """On resume and in a repetition, defaults included; another error is not blamed on it."""

    @define(eq=False)
    class Own(Shift):
        to: AnyFormat = setting("SHELF", help="the format")

    shelf.install("format", "SHELF", table_format("SHELF", [-1, 0, 1]), "acme", "1.0")
    shelf.install("intervention", "shift", Own)
    first = start([plugin], format="E4M3", name="run", max_steps=1, **settings).run_directory
    shutil.rmtree(shelf.folder / "acme-1.0.dist-info")
    forget_installed()
    says = rf"^{plugin}\..*'SHELF'.*: SHELF came from acme 1\.0: install it"
    with pytest.raises(BadInput, match=says):
        start.resume("run", max_steps=2)
    with pytest.raises(BadInput, match=says):
        altcore.train(first / "config.yaml")
    path = first / "config.yaml"
    path.write_text(path.read_text().replace("max_steps: 1", "max_steps: 0"))
    with pytest.raises(BadInput, match="max_steps: must be >= 1") as said:
        altcore.train(path)
    assert "SHELF" not in str(said.value)


def test_a_changed_format_is_noticed_in_a_checkpoint(start, shelf):
    """Where the configuration does not name it, or its digests were removed."""
    replaced(shelf, table_format("SHELF", [-1, 0, 1]), "1.0")
    first = start(format="SHELF", name="run").run_directory
    path = first / "config.yaml"
    path.write_text(yaml.safe_dump({**held(first), "format_digests": {}}))
    text = path.read_text()
    replaced(shelf, table_format("SHELF", [-1, 0, 2]), "1.1")
    with pytest.raises(BadInput, match=r"format was SHELF of acme 1\.0.* SHELF of acme 1\.1"):
        start.resume("run", max_steps=5)
    assert path.read_text() == text
    assert len(losses(first)) == 3


def test_a_length_that_was_edited_is_named_with_its_file(start):
    """A run that has more steps than its config.yaml asks for; not if the caller asks for few."""
    path = start(max_steps=4, name="run").run_directory
    file = path / "config.yaml"
    with pytest.raises(BadInput) as error:
        start.resume("run", max_steps=2)
    assert "config.yaml" not in str(error.value)
    file.write_text(file.read_text().replace("max_steps: 4", "max_steps: 2"))
    with pytest.raises(BadInput) as error:
        start.resume("run")
    assert str(error.value).endswith(
        f": {file} has max_steps 2, and the run had 4: altcore runs restore run brings it back"
    )


def test_a_length_that_was_edited_to_a_larger_one_is_named_with_its_file(start):
    """The run goes on, as it would if --steps had asked for it; then the file is not named."""
    path = start(max_steps=4, name="run").run_directory
    file = path / "config.yaml"
    with capture_logs() as logs:
        start.resume("run", max_steps=5)
    assert not any("config.yaml" in line["event"] for line in logs)
    file.write_text(file.read_text().replace("max_steps: 5", "max_steps: 7"))
    with capture_logs() as logs:
        start.resume("run")
    told = f"{file} has max_steps 7, and the run had 5: altcore runs restore run brings it back"
    assert told in [line["event"] for line in logs]
    assert len(losses(path)) == 7
