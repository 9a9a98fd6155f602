"""Reading recipes: what is refused, and how."""

import json
import shutil

import pytest
from helpers_recipes import LAYERS, plan_of
from torch import nn

from altcore import BadInput, TrainConfig, float_format, get_format, quantize_model, table_format
from altcore.errors import Source
from altcore.recipes import read_recipe, reading, resolved_from_plain, resolved_to_plain
from altcore.recipes.reading import parse


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({"wieght": "E4M3"}, r"recipe r: unknown key 'wieght' \(did you mean weight\?\)"),
        ({"weight@fdw": "E4M3"}, r"'weight@fdw' \(did you mean weight@fwd\?\)"),
        ({"weight": "E4M"}, r"unknown format 'E4M' \(did you mean E4M3\?\)"),
        ({"weight": 4}, "recipe r: weight: 4 is neither a format's name"),
        ({"weight": {"scaling": "none"}}, "recipe r: weight: format is missing"),
        (
            {"weight": {"format": "E4M3", "scalign": "none"}},
            r"'scalign' \(did you mean scaling\?\)",
        ),
        (
            {"weight": {"format": "E4M3", "rounding": "nearest-evn"}},
            r"weight\.rounding: 'nearest-evn' is unknown \(did you mean nearest-even\?\)",
        ),
        (
            {"weight": {"format": "E4M3", "overflow": "saturat"}},
            r"weight\.overflow: 'saturat' is unknown \(did you mean saturate\?\)",
        ),
        (
            {"weight": {"format": "E4M3", "overflow": "inf"}},
            r"weight\.overflow: format E4M3 has no inf code",
        ),
        (
            {"weight": {"format": "E4M3", "scaling": "tensr"}},
            r"weight\.scaling: 'tensr' is unknown \(did you mean tensor\?\)",
        ),
        (
            {"weight": {"format": "E4M3", "scaling": {"kind": "delayed", "histroy": 3}}},
            r"weight\.scaling: unknown key 'histroy' \(did you mean history\?\)",
        ),
        (
            {"weight": {"format": "E4M3", "scaling": {"margin": "1"}}},
            r"weight\.scaling\.margin: '1' has the wrong type",
        ),
        (
            {"weight": {"format": "E4M3", "scaling": {"history": True}}},
            r"weight\.scaling\.history: True has the wrong type",
        ),
        (
            {"weight": {"format": "E4M3", "scaling": {"power_of_two": 1}}},
            r"weight\.scaling\.power_of_two: 1 has the wrong type",
        ),
        ({"weight": {"format": "E4M3", "scaling": {"margin": 0}}}, r"weight\.scaling: .*margin"),
        ({"weight": {"format": "E4M3", "scaling": {"history": 0}}}, r"weight\.scaling: .*history"),
        ({"layers": ["a"]}, "layers: a mapping of patterns"),
        ({"layers": {"a.*": "E4M3"}}, r"layers\.a\.\*: a mapping of roles"),
        (
            {"layers": {"a.*": {"activaton": "E4M3"}}},
            r"layers\.a\.\*: unknown key 'activaton' \(did you mean activation\?\)",
        ),
        (
            {"layers": {"<lineer>": {"weight": "E4M3"}}},
            r"unknown selector '<lineer>' \(did you mean <linear>\?\)",
        ),
        ({"layers": {3: {"weight": "E4M3"}}}, "the pattern 3 is not text"),
        ({"skip": "head"}, "skip: a list of patterns"),
        ({"skip": ["<haed>"]}, r"unknown selector '<haed>' \(did you mean <head>\?\)"),
        ([], "is not a mapping"),
        ("E4M3", "is not a mapping"),
    ],
)
def test_errors_name_the_key_and_the_nearest(data, says):
    """Whatever is wrong, the message says where and what would be right."""
    with pytest.raises(BadInput, match=says):
        parse(data, "r")


def test_messages_name_the_file():
    """So that one knows which of several is meant."""
    with pytest.raises(BadInput, match=r"recipe mine: unknown key.*\(given in mine\.yaml\)"):
        parse({"x": 1}, "mine", Source("mine.yaml"))


def test_format_stands_for_the_runs_format():
    """In a file, FORMAT without one is an error that says so."""
    with pytest.raises(BadInput, match="FORMAT stands for the run's format, and none is given"):
        parse({"weight": "FORMAT"}, "mine")


def test_plans_round_trip_through_plain_data():
    """By way of JSON: everything that a cast holds comes back."""
    delayed = {"kind": "delayed", "margin": 1.5, "history": 3, "power_of_two": True}
    plan = plan_of(
        {
            "weight": {"format": "E5M2", "scaling": delayed, "overflow": "inf"},
            "gradient@wgrad": {"format": "E2M1", "rounding": "stochastic"},
            "stored_weight": "BF16",
            "layers": {"conv": {"weight_gradient": "E7M0"}},
            "skip": ["a.k"],
        }
    )
    assert resolved_from_plain(json.loads(json.dumps(resolved_to_plain(plan)))) == plan


def test_a_plan_may_hold_formats_that_are_not_installed():
    """They are whole in the data, since their names mean nothing elsewhere."""
    plan = plan_of({"weight": float_format("MINE", 3, 2), "gradient": float_format("OWN", 4, 3)})
    plain = json.loads(json.dumps(resolved_to_plain(plan)))
    assert resolved_from_plain(plain) == plan
    assert {c["format"]["name"] for x in plain.values() for c in x.values()} == {"MINE", "OWN"}


# --------------------------------------------------------------------------------- forms


def test_one_function_reads_every_form(tmp_path):
    """A name, a file, a mapping and a `Recipe`, with FORMAT filled in; and a format."""
    plain = {"weight": "FORMAT", "name": "mine"}
    (tmp_path / "mine.yaml").write_text("weight: FORMAT\nname: mine\n")
    expected = parse({"weight": "E4M3"}, "mine")
    e4m3 = get_format("E4M3")
    for given in (plain, tmp_path / "mine.yaml", str(tmp_path / "mine.yaml")):
        assert read_recipe(given, "E4M3") == read_recipe(given, e4m3) == expected
    assert read_recipe(expected) is expected
    assert read_recipe("master", "E4M3") == read_recipe("E4M3") == read_recipe(e4m3)


def test_a_recipe_that_cannot_take_a_format_is_not_at_fault():
    """The format is, whatever the recipe's form."""
    for given in ("mxfp8", {"weight": "E4M3"}, parse({"weight": "E4M3"}, "r"), get_format("E4M3")):
        with pytest.raises(BadInput, match=r"^format E5M2: ") as caught:
            read_recipe(given, "E5M2")
        assert caught.value.key == "format"
    with pytest.raises(BadInput, match=r"^recipe: E4M3 is a format, not a recipe") as caught:
        read_recipe("E4M3", "E5M2")
    assert caught.value.key == "recipe"


@pytest.mark.parametrize(
    ("cast", "fmt", "key"),
    [
        ({"format": "FORMAT", "overflow": "inf"}, "E3M4", "format"),
        ({"format": "E3M4", "overflow": "inf"}, None, "recipe"),
        ({"format": "FORMAT", "scaling": "channel"}, "MXFP4", "format"),
        ({"format": "MXFP4", "scaling": "channel"}, None, "recipe"),
        ({"format": "FORMAT", "scaling": "chanel"}, "MXFP4", "recipe"),
        ({"format": "FORMAT", "hadamard": 3}, "E4M3", "recipe"),
        ({"format": "FORMAT"}, None, "recipe"),
        ("FORMAT", "E4M33", "format"),
    ],
)
def test_the_one_at_fault_is_named(cast, fmt, key):
    """The format if it is the run's and another would do; the recipe else."""
    with pytest.raises(BadInput) as caught:
        read_recipe({"weight": cast}, fmt)
    assert caught.value.key == key


@pytest.mark.parametrize(
    ("stored", "fmt", "key"),
    [
        ("FORMAT", "MXFP4", "format"),
        ("MXFP4", None, "recipe"),
        ({"format": "FORMAT", "scaling": "delayed"}, "E4M3", "recipe"),
    ],
)
def test_the_one_at_fault_for_what_is_stored_is_named(stored, fmt, key):
    """A scaling that the recipe itself says is wrong with every format."""
    with pytest.raises(BadInput, match="a single scale") as caught:
        read_recipe({"stored_weight": stored}, fmt)
    assert caught.value.key == key


def test_a_format_has_a_name_of_its_own():
    """Neither an installed one nor another format of the recipe is called so, at any depth."""
    one, other = ({"name": "MINE", "values": [-1, 0, top]} for top in (1, 2))
    read_recipe({"weight": one, "layers": {"a.*": {"weight": one}}})
    with pytest.raises(BadInput, match=r"^recipe given: format MINE: two formats .* another name$"):
        read_recipe({"weight": one, "layers": {"a.*": {"weight": other}}})
    with pytest.raises(BadInput, match=r"^recipe given: format MINE: two formats"):
        read_recipe({"weight": "FORMAT", "gradient": one}, other)
    taken = {"name": "E4M3", "values": [-1, 0, 1]}
    with pytest.raises(BadInput, match=r"^recipe given: format E4M3: altcore-formats "):
        read_recipe({"weight": taken})
    for recipe in ("master", {"weight": "FORMAT"}):
        with pytest.raises(BadInput, match=r"^format E4M3: altcore-formats "):
            read_recipe(recipe, taken)


def test_a_recipe_is_read_once(monkeypatch):
    """Also one that its format does not suit: nobody reads it again to find the one at fault."""
    read = []
    monkeypatch.setattr(reading, "parse", lambda *a, **k: read.append(a) or parse(*a, **k))
    with pytest.raises(BadInput, match=r"^format MXFP4: recipe pure: stored_weight"):
        TrainConfig(recipe="pure", format="MXFP4")
    assert len(read) == 1


def test_errors_of_a_file_name_its_lines(tmp_path):
    """Of roles, of what is below them, of layers, and of patterns that match nothing."""
    path = tmp_path / "mine.yaml"
    for text, line in (
        ("weight: E4M3\nwieght: E4M3\n", 2),
        ("weight:\n  format: E4M3\n  scaling:\n    kind: delayed\n    history: x\n", 5),
        ("weight:\n  format: E4M3\n  rounding: up and down\n", 3),
        ("weight:\n  format: E4M33\n", 2),
        ("weight: {name: MINE,\n  values: [0, x]}\n", 2),
        ("layers:\n  a.*: {weight: E4M3}\n  <nosuch>: {weight: E4M3}\n", 3),
        ("layers:\n  b.*: {weight: E4M3}\n", 2),
        ("weight: E4M3\nskip:\n- a.*\n- b.*\n", 4),
        ("weight: E4M3\nlayers:\n  emb: {weight: E4M3}\n  <head>: {attention: E4M3}\n", 4),
        ("name: 3\n", 1),
    ):
        path.write_text(text)
        with pytest.raises(BadInput, match=rf"\(given in .*mine\.yaml, line {line}\)$") as caught:
            read_recipe(path).resolve(LAYERS)
        assert caught.value.source == Source(str(path), line), text


@pytest.mark.parametrize(
    ("text", "says", "line"),
    [
        ("skip: 0", "skip: a list of patterns is needed", 2),
        ("skip: false", "skip: a list of patterns is needed", 2),
        ("layers: false", "layers: a mapping of patterns", 2),
        ("layers: []", "layers: a mapping of patterns", 2),
        ("name: 3", r"recipe r\.yaml: name: 3 is not a line of text", 2),
        ("name: ~", r"recipe r\.yaml: name: None is not a line of text", 2),
        ("activation:\n  name: X\n  exponent: 4\n  bogus: 3", "format X: unknown key 'bogus'", 5),
        ("activation: {format: {name: X,\n  values: [0,\n a]}}", "format X: values: item 1", 4),
        ("~: E4M3", "unknown key None", 2),
    ],
)
def test_a_file_is_named_by_the_line(text, says, line, tmp_path):
    """Whatever it is that is wrong in it: false and 0 are not the same as nothing."""
    path = tmp_path / "r.yaml"
    path.write_text(f"weight: E4M3\n{text}\n")
    with pytest.raises(BadInput, match=says) as caught:
        read_recipe(str(path))
    assert caught.value.source == Source(str(path), line)


def test_a_hadamard_transform_without_its_partner_is_named_by_its_line(tmp_path):
    """Only the model tells that two operands meet."""
    path = tmp_path / "r.yaml"
    path.write_text("weight: E4M3\nactivation:\n  format: E4M3\n  hadamard: 4\n")
    with pytest.raises(BadInput, match="the same Hadamard transform, not 4 and 0") as caught:
        quantize_model(nn.Linear(4, 4), str(path))
    assert caught.value.source == Source(str(path), 2)


@pytest.mark.parametrize("part", ["element", "scale"])
@pytest.mark.parametrize(
    "recipe_of",
    [
        lambda fmt: {"weight": fmt},
        lambda fmt: {"weight": {"format": fmt, "rounding": "nearest-even"}},
        lambda fmt: {"layers": {"*": {"weight": fmt}}},
    ],
    ids=["role", "cast", "layer"],
)
def test_a_configuration_keeps_the_parts_of_an_inline_block_format(recipe_of, part, shelf):
    """Whole: their distribution may give other values to the names when the record is read."""
    scales = {"scale": "E4M3", "rule": "two-level"} if part == "scale" else {}
    block = {"name": "B8", "element": "E2M1", "block": 8, **scales, part: "SHELF"}
    shelf.install("format", "SHELF", table_format("SHELF", [0.5, 1, 2]), "acme", "1.0")
    before = get_format(block)
    recorded = TrainConfig(recipe=recipe_of(block)).to_plain()
    shutil.rmtree(shelf.folder / "acme-1.0.dist-info")
    shelf.install("format", "SHELF", table_format("SHELF", [0.5, 1, 3]), "acme", "1.1")
    assert get_format(block) != before
    rules = TrainConfig.from_plain(recorded).make_recipe().rules
    assert {cast.format for rule in rules for cast in rule.casts.values()} == {before}
