"""Exported weights whose formats were changed or removed since: what to install is named."""

import shutil

import pytest
import torch
from helpers import forget_installed
from helpers_cli import call

import altcore
from altcore import BadInput, table_format

VALUES = [-2, -1, -0.5, -0.25, 0, 0.25, 0.5, 1, 2]


@pytest.fixture
def shelved(start, shelf, tmp_path):
    """Install a format, train and export a run in it; return what installs it anew."""
    shelf.install("format", "SHELF", table_format("SHELF", VALUES), "acme", "1.0")
    start(format="SHELF", recipe="pure", name="run", max_steps=1)
    loaded = altcore.load("run", "latest", runs_dir=start.runs)
    for kind in ("codes", "values"):
        altcore.export(loaded, tmp_path / kind, kind)

    def install(values, version):
        """Replace the distribution, or remove it if it has no values."""
        for folder in shelf.folder.glob("acme-*.dist-info"):
            shutil.rmtree(folder)
        forget_installed()
        if values:
            shelf.install("format", "SHELF", table_format("SHELF", values), "acme", version)

    return install


@pytest.mark.parametrize(
    ("version", "hint"),
    [
        ("1.1", "install acme 1.0"),
        ("1.0", "install the acme 1.0 that was there then: this one has the same version"),
    ],
)
def test_a_format_with_other_values_says_what_to_install(
    version, hint, shelved, start, tmp_path, capsys
):
    """And nothing that cannot be done: only a new run's configuration has a key to remove."""
    shelved([*VALUES, 4], version)
    told = f"the values or rules that acme {version} gives it are not those of the record"
    for key, reads in (
        (str(tmp_path / "codes"), lambda: altcore.read_export(tmp_path / "codes")),
        ("format_digests", lambda: altcore.load("run", runs_dir=start.runs)),
    ):
        with pytest.raises(BadInput) as error:
            reads()
        assert str(error.value).startswith(f"{key}: format SHELF: {told}")
        assert error.value.hint == hint
    outcome = call(
        capsys, "checkpoints", "export", "run", tmp_path / "new", "--runs-dir", start.runs
    )
    assert outcome.code == 2
    assert f": {hint} (given in {start.runs}/run/config.yaml, line " in outcome.message
    with pytest.raises(BadInput) as error:
        altcore.train(start.runs / "run/config.yaml")
    removing = ", or remove the name from format_digests for a run with today's values"
    assert error.value.hint == hint + removing


def test_a_format_that_is_gone_names_its_distribution(shelved, tmp_path):
    """No format with a similar name is proposed; values need no format."""
    shelved(None, "")
    with pytest.raises(BadInput) as error:
        altcore.read_export(tmp_path / "codes")
    assert str(error.value) == (
        f"{tmp_path / 'codes'}: unknown format 'SHELF': SHELF came from acme 1.0: install it"
    )
    values = altcore.read_export(tmp_path / "values")
    shelved(VALUES, "1.2")
    codes = altcore.read_export(tmp_path / "codes")
    assert all(torch.equal(values[name], x.to(values[name].dtype)) for name, x in codes.items())


def test_other_things_than_those_that_are_needed_are_refused_by_name(tmp_path):
    model, optimizer = torch.nn.Linear(2, 2), torch.optim.SGD(torch.nn.Linear(2, 2).parameters())
    with pytest.raises(BadInput, match="a run's name or directory is needed"):
        altcore.load(model)
    with pytest.raises(BadInput, match=r"what altcore\.load returned is needed"):
        altcore.export("r", tmp_path / "file")
    with pytest.raises(BadInput, match="what quantize_model returned is needed"):
        altcore.CheckpointManager(tmp_path, model, None, optimizer)
    assert not [*tmp_path.iterdir()]
