"""What only the runs of one arm have: an optimizer, plugins, settings."""

import pytest
from attrs import define, field
from helpers_contenders import made

from altcore import BadInput
from altcore.hooks import setting


@define(eq=False)
class Clip:
    limit: float = setting(1.0)
    name: str = field(init=False, default="clip")


@pytest.fixture
def clip(shelf):
    shelf.install("intervention", "clip", Clip)


def test_plugins_are_held_against_none(clip):
    none, clipped = made(formats=["E4M3"], plugins=["none", "clip:limit=0.5"])
    assert (none.name, clipped.name) == ("E4M3/none", "E4M3/clip:limit=0.5")
    assert none.keys == {}
    assert "clip" in clipped.keys["plugins"]
    assert clipped.keys["settings"]["clip"] == {"limit": 0.5}
    # The runs of the arm without are those of a study without plugins.
    (alone,) = made(formats=["E4M3"])
    assert (alone.key, clipped.key) == (none.key, "E4M3-master-adamw-clip_limit_0_5")


def test_settings_are_one_arms_own(clip):
    """Also those of its optimizer and of a plugin that only it has."""
    own = {"grad_clip": 0.5, "clip.limit": 2.0, "adamw.weight_decay": 0.0}
    asked = {"plugins": ["none", "clip"], "optimizers": ["adamw", "sgd"]}
    arms = {c.name: c for c in made(formats=["E4M3"], **asked, settings={"E4M3/adamw/clip": own})}
    keys = arms["E4M3/adamw/clip"].keys
    assert keys["grad_clip"] == 0.5
    assert keys["settings"] == {"clip": {"limit": 2.0}, "adamw": {"weight_decay": 0.0}}
    assert arms["E4M3/adamw/clip"].settings == own
    assert "grad_clip" not in arms["E4M3/sgd/clip"].keys
    assert arms["E4M3/sgd/none"].keys["optimizer"] == "sgd"


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"settings": {"E4M9": {"grad_clip": 1}}}, r"--set: there is no arm E4M9 .*E4M3"),
        ({"settings": {"E4M3": {"grad_clp": 1}}}, r"--set E4M3: .*did you mean grad_clip"),
        ({"settings": {"E4M3": {"gpt.size": "tiny"}}}, r"gpt\.size: all arms share it"),
        ({"settings": {"E4M3": {"max_steps": 5}}}, r"max_steps: all arms share it"),
        ({"settings": {"E4M3": {"learning_rate": 1}}}, r"learning_rate: .*the study chooses it"),
        ({"plugins": ["none", "clp"]}, r"clp.*did you mean clip.*--plugins clp"),
        ({"plugins": ["none", "clip:limit"]}, r"--plugins clip:limit: 'limit' is not KEY=VALUE"),
        ({"plugins": "none"}, r"plugins: a list of names is needed"),
    ],
)
def test_what_an_arm_cannot_have_is_refused(clip, asked, words):
    with pytest.raises(BadInput, match=words):
        made(formats=["E4M3"], **asked)
