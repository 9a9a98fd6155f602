"""Studies from Python, and answers that show themselves."""

import json

import pytest
from helpers_studies import explain_answer

import altcore
from altcore import BadInput, answers
from altcore.runs import with_digest
from altcore.study import Entrants

PAGE = "# Where E7M0 breaks\n\n**It <trains>**: `a*b`\n"


@pytest.fixture
def study(tmp_path, monkeypatch):
    """Let studies only write down how they were asked; return the list of it."""
    asked = []

    def run(options, *what):
        asked.append((options, *what))
        folder = tmp_path / (options.name or "unnamed")
        folder.mkdir()
        found = explain_answer()
        (folder / "explain.json").write_text(json.dumps(with_digest(found)))
        return found, folder

    monkeypatch.setattr(answers, "run_explain", run)
    monkeypatch.setattr(answers, "run_compare", run)
    return asked


def keys(options):
    return {key: value for key, value, _ in options.overrides}


@pytest.mark.parametrize(
    ("given", "recipe"),
    [
        ({"format": "E7M0"}, "full"),
        ({"format": "MXFP4"}, "master"),
        ({"format": "E7M0", "recipe": "pure"}, "pure"),
    ],
)
def test_explain_asks_as_the_command_does(given, recipe, study, tmp_path):
    """Where the format is used follows from the format, unless it is given."""
    answer = altcore.explain(given, seeds=2, within=0.1, name="mine", folder=tmp_path)
    ((options,),) = study
    assert keys(options) == {**given, "recipe": recipe}
    asked = (options.seeds, options.within, options.name, options.folder, options.file)
    assert asked == (2, 0.1, "mine", tmp_path, None)
    assert answer.file == tmp_path / "mine/explain.json"


def test_a_configuration_may_be_a_file(study, tmp_path):
    (tmp_path / "mine.yaml").write_text("{format: E7M0, recipe: pure}")
    altcore.explain(tmp_path / "mine.yaml")
    ((options,),) = study
    assert (options.file, keys(options)) == (str(tmp_path / "mine.yaml"), {})


def test_compare_asks_as_the_command_does(study):
    altcore.compare(["E4M3", "E7M0"], config={"max_steps": 3})
    ((options, entrants),) = study
    assert entrants == Entrants(["E4M3", "E7M0"])
    assert keys(options) == {"max_steps": 3}
    with pytest.raises(BadInput, match="formats: a list of names is needed, not 'E4M3'"):
        altcore.compare("E4M3")


def test_an_answer_shows_what_reporters_made_of_it(study):
    """The page if one is rendered, or else its data; read back it is the same."""
    answer = altcore.explain({"format": "E7M0"}, name="mine")
    assert json.loads(str(answer)) == with_digest(answer.found)
    assert answer._repr_markdown_() == f"```json\n{answer}```"
    page = answer.file.with_suffix(".md")
    page.write_text(PAGE)
    assert str(answer) == answer._repr_markdown_() == PAGE
    assert altcore.read_answer(answer.file) == altcore.read_answer(page) == answer


@pytest.mark.parametrize("text", [None, "{", "[]", "{}"])
def test_what_is_no_answer_is_refused(text, tmp_path):
    if text is not None:
        (tmp_path / "explain.json").write_text(text)
    with pytest.raises(BadInput, match=r"explain\.json is not the answer of a study"):
        altcore.read_answer(tmp_path / "explain.md")


@pytest.mark.slow
def test_formats_are_compared_from_python(tmp_path, corpus):
    config = {"gpt.size": "tiny", "gpt.n_layer": 1, "gpt.data": str(corpus), "max_steps": 3}
    answer = altcore.compare(["E4M3"], config=config, seeds=2, folder=tmp_path)
    assert [row["format"] for row in answer.found["contenders"]] == ["E4M3"]
    assert answer._repr_markdown_().startswith("# Comparison\n\n| arm | × lr |")
    assert altcore.read_answer(answer.file) == answer
