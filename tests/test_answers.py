"""Studies from Python, and answers that show themselves."""

import json
from html.parser import HTMLParser

import pytest
from helpers_cli import ROOT

import altcore
from altcore import BadInput, answers
from altcore.study import Entrants, as_html

PAGE = "# Where E7M0 breaks\n\n**It <trains>**: `a*b`\n"


@pytest.fixture
def study(tmp_path, monkeypatch):
    """Let studies only write down how they were asked; return the list of it."""
    asked = []

    def run(options, *what):
        asked.append((options, *what))
        folder = tmp_path / (options.name or "unnamed")
        folder.mkdir()
        found = {"about": {"page": "explain"}}
        (folder / "explain.json").write_text(json.dumps(found))
        (folder / "explain.md").write_text(PAGE)
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
    assert answer.page == tmp_path / "mine/explain.md"


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


def test_an_answer_shows_its_page(study, tmp_path):
    """As text, and as HTML in which every name is escaped; read back it is the same."""
    answer = altcore.explain({"format": "E7M0"}, name="mine")
    assert str(answer) == PAGE
    shown = "<h3>Where E7M0 breaks</h3><p><strong>It &lt;trains&gt;</strong>: <code>a*b</code></p>"
    assert answer._repr_html_() == shown
    assert altcore.read_answer(answer.page) == answer


@pytest.mark.parametrize("text", [None, "{", "[]", "{}"])
def test_what_is_no_answer_is_refused(text, tmp_path):
    if text is not None:
        (tmp_path / "explain.json").write_text(text)
        (tmp_path / "explain.md").write_text(PAGE)
    with pytest.raises(BadInput, match=r"explain\.md is not the page of a study"):
        altcore.read_answer(tmp_path / "explain.md")


class Checked(HTMLParser):
    """Counts the tags, and fails where one is not closed."""

    def __init__(self, html):
        super().__init__()
        self.open, self.counts = [], {}
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)
        self.counts[tag] = self.counts.get(tag, 0) + 1

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.mark.parametrize("name", ["explain-e7m0", "splits"])
def test_pages_that_studies_wrote_are_shown_whole(name):
    """Every heading, row, item and bold word of a real page."""
    text = (ROOT / f"docs/results/{name}.md").read_text()
    lines = text.splitlines()
    counts = Checked(as_html(text)).counts
    rows = [line for line in lines if line.startswith("|") and not line.startswith("|---")]
    assert counts["tr"] == len(rows)
    assert counts["table"] == sum(line.startswith("|---") for line in lines)
    assert counts.get("li", 0) == sum(line.startswith("- ") for line in lines)
    headings = sum(counts.get(f"h{level}", 0) for level in range(1, 7))
    assert headings == sum(line.startswith("#") for line in lines)
    assert counts.get("strong", 0) == text.count("**") // 2


@pytest.mark.slow
def test_formats_are_compared_from_python(tmp_path, corpus):
    config = {"gpt.size": "tiny", "gpt.n_layer": 1, "gpt.data": str(corpus), "max_steps": 3}
    answer = altcore.compare(["E4M3"], config=config, seeds=2, folder=tmp_path)
    assert [row["format"] for row in answer.found["contenders"]] == ["E4M3"]
    assert "<h3>Comparison</h3><table>" in answer._repr_html_()
    assert altcore.read_answer(answer.page).page == answer.page
