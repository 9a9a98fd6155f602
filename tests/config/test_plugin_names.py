"""A plugin with the name of a key: ``NAME.setting`` would be both's."""

import pytest
from attrs import define, fields_dict
from helpers_cli import call

from altcore import BadInput, TrainConfig, load_config
from altcore.config import check_is_no_key
from altcore.config.original_keys import compound_keys, renamed_keys
from altcore.registry import HOOK_KINDS, find


@define(eq=False)
class Plain:
    """A plugin of any kind."""

    def build(self, *_):
        return None


@pytest.mark.parametrize("kind", [*HOOK_KINDS, "workload", "optimizer"])
@pytest.mark.parametrize("name", ["seed", "recipe", "n_layer", "use_fp8", "preset", "data"])
def test_it_is_refused_when_it_is_used(shelf, kind, name):
    """Every kind that has settings, every key, those of original files included."""
    shelf.install(kind, name, Plain, "acme-odd", "1.5")
    key, value = ("plugins", [name]) if kind in HOOK_KINDS else (kind, name)
    words = rf"^{kind} {name} \(acme-odd 1.5\) has the name of a key of the configuration"
    with pytest.raises(BadInput, match=words):
        TrainConfig(**{key: value})
    with pytest.raises(BadInput, match=words):
        load_config(overrides={key: value})
    # Installed alone it spoils nothing.
    assert load_config().seed == 42


def test_every_key_counts(shelf):
    """Whatever is added to the configuration."""
    for name in {*fields_dict(TrainConfig), *renamed_keys(), *compound_keys()}:
        shelf.install("diagnostic", name, Plain)
        with pytest.raises(BadInput, match="has the name of a key"):
            check_is_no_key(find(name, ("diagnostic",)))


def test_an_unknown_name_is_called_unknown(start):
    """Nothing that is called so is installed."""
    with pytest.raises(BadInput, match="unknown workload 'seed'"):
        start(workload="seed")


def test_plugins_check_points_it_out(capsys, shelf):
    """So does the command that uses a reporter."""
    shelf.install("reporter", "seed", Plain, "acme-odd", "1.5")
    outcome = call(capsys, "plugins", "check")
    assert outcome.code == 1
    (line,) = (x for x in outcome.out.splitlines() if "BROKEN" in x)
    assert line.startswith("reporter seed (acme-odd 1.5): BROKEN: reporter seed (acme-odd 1.5) has")
    outcome = call(capsys, "report", "seed", "r")
    assert "has the name of a key" in outcome.message
