"""The files that are made of a study's answer: HTML, LaTeX and CSV beside Markdown."""

import csv
import json
import re
from html.parser import HTMLParser

import pytest
from attrs import define
from helpers_cli import call
from helpers_studies import HOSTILE, compare_answer, explain_answer

from altcore import BadInput
from altcore.runs import with_digest
from altcore.study import answer as answers
from altcore_reporters.study_pages.comparison import comparison
from altcore_reporters.study_pages.csv_table import as_csv
from altcore_reporters.study_pages.document import Bar, Interval, Intervals
from altcore_reporters.study_pages.drawn import drawn_curves, drawn_intervals
from altcore_reporters.study_pages.explanation import explanation
from altcore_reporters.study_pages.latex import MOST_ROWS, WIDTH, WRAPPED
from altcore_reporters.study_pages.reporter import RENDERERS, Comparison, Explanation
from altcore_reporters.study_pages.rows import rate_curves

ANSWERS = {"explain": (Explanation, explain_answer), "compare": (Comparison, compare_answer)}


@pytest.fixture(params=ANSWERS)
def rendered(request, tmp_path):
    """Yield the files of an answer, by their endings."""
    reporter, made = ANSWERS[request.param]
    paths = reporter().render_answer(made(), tmp_path)
    assert [p.name for p in paths] == [f"{request.param}{suffix}" for suffix in RENDERERS]
    return {p.suffix: p.read_text(encoding="utf-8") for p in paths}


def test_a_reporter_renders_the_answers_of_its_command_only(tmp_path):
    assert Explanation().render_answer(compare_answer(), tmp_path) == []
    assert Comparison().render_answer(explain_answer(), tmp_path) == []
    assert not list(tmp_path.iterdir())


def test_every_number_of_every_table_is_in_the_csv(rendered):
    """In full, an interval in three columns; and a row for each run that chose a rate."""
    rows = list(csv.DictReader(rendered[".csv"].splitlines()))
    first = next(r for r in rows if r["table"] in ("arms", "contenders") and r["gap"][:3] == "0.4")
    assert [float(first[k]) for k in ("gap", "gap low", "gap high")] == [0.4, 0.4 - 0.1, 0.4 + 0.1]
    losses = [float(r["loss"]) for r in rows if r["table"] == "learning-rates"]
    assert losses[:4] == [3.2, 3.0, 3.1, float("inf")]
    tables = set(re.findall(r"label\{tab:mine-\w+-([a-z-]+)\}", rendered[".tex"]))
    assert {r["table"] for r in rows} == tables
    assert any(HOSTILE in r.values() for r in rows)


def test_the_csv_has_numbers_and_nothing_else_in_their_columns():
    """Missing ones are empty, every column is there, and what counts have counted."""
    found = compare_answer()
    found["differences"][0]["share_closed"] = None
    text = as_csv(comparison(found))
    rows = {r["table"]: r for r in csv.DictReader(text.splitlines())}
    differing = rows["differences"]
    names = [f"share of the gap closed{end}" for end in ("", " low", " high")]
    assert [differing[name] for name in names] == [""] * 3
    assert (differing["n"], differing["p"], differing["p (Holm)"]) == ("2", "0.5", "0.02")
    contender, rate = rows["contenders"], rows["rates"]
    assert (contender["learned"], contender["diverged"], contender["n"]) == ("2", "0", "2")
    assert (rate["overflow largest"], rate["overflow step"]) == ("0.01", "7")
    assert {r["study"] for r in rows.values()} == {"mine"}
    assert {r["metric"] for r in rows.values()} == {"train"}
    found["differences"] = []
    assert as_csv(comparison(found)).partition("\n")[0] == text.partition("\n")[0]


def test_latex_tables_can_be_taken_into_a_paper(rendered):
    """Whole environments of even rows, with captions that say what intervals are of."""
    text = rendered[".tex"]
    assert text.count(r"\begin{table}") == text.count(r"\end{table}") == text.count(r"\caption") > 2
    environment = (
        r"\\begin\{tabularx\}\{\\linewidth\}\{@\{\}([^\n]*)@\{\}\}\n(.*?)\\end\{tabularx\}"
    )
    for kinds, body in re.findall(environment, text, re.S):
        kinds = kinds.replace(RAGGED, "").replace(r"@{\ }", "")
        rows = [line for line in body.splitlines() if line.endswith(r"\\")]
        assert len(rows) > 1
        assert {
            len(re.findall(r"(?<!\\)&", row)) + row.count(r"\multicolumn{2}") + 1 for row in rows
        } == {len(kinds)}
        assert set(kinds) <= set("Xlr")
    assert r"a\_\allowbreak b|<i>\&50\%" in text
    assert "the last tenth of the steps to that of the float32 twin" in text
    assert "60 steps of gpt in each run, seeds 42, 43" in text
    assert "Intervals are 95 \\% by Student's t" in text
    assert "$0.4000$ & [$0.3000$, $0.5000$]" in text
    labels = re.findall(r"label\{(.*?)\}", text)
    assert len(set(labels)) == len(labels) == text.count("%<*")
    assert {label.partition("-")[0] for label in labels} == {"tab:mine"}
    assert text.isascii() or set(re.findall(r"[^\x00-\x7f]", text)) <= {"\u202e", "√"}


def test_the_caption_of_the_arms_says_which_p_is_not_corrected(tmp_path):
    """A table in a paper stands without the page's last section."""
    Explanation().render_answer(explain_answer(), tmp_path)
    text = (tmp_path / "explain.tex").read_text(encoding="utf-8")
    (caption,) = re.findall(r"\\caption\{(Every set of factors\..*)\}", text)
    assert "The arm with all factors is asked about first, and its p is not corrected" in caption
    assert "Intervals are 95" in caption


RAGGED = r">{\raggedright\arraybackslash}"


def test_a_table_wider_than_a_page_has_several(rendered):
    """With the same names of rows; none needs more than a line of text has."""
    for line in rendered[".tex"].splitlines():
        if line.endswith(r"\\") and r"\multicolumn{2}{c}" not in line:
            plain = re.sub(r"\\\w+\{?|[$\\]", "", line)
            own = [cell.strip()[:WRAPPED] for cell in plain.split("&")]
            assert sum(map(len, own)) + 2 * len(own) < WIDTH + 2


def test_a_table_longer_than_a_page_goes_on_over_pages(tmp_path):
    """With its head and caption on each; the others stay tables, and need no further package."""
    found = compare_answer()
    row = found["contenders"][1]
    found["contenders"] = [{**row, "arm": f"arm {i}"} for i in range(MOST_ROWS + 1)]
    (file,) = (p for p in Comparison().render_answer(found, tmp_path) if p.suffix == ".tex")
    made = file.read_text()
    assert made.startswith(
        "% Tables of an altcore study; the preamble needs "
        r"\usepackage{booktabs,tabularx,xltabular}."
    )
    part = re.search(r"%<\*contenders>\n(.*?)\n%</contenders>", made, re.S)[1]
    first, head, rows = re.split(r"\\endfirsthead|\\endlastfoot", part)
    assert first.count(r"\label") == first.count(r"\caption") == head.count(r"\caption[]") == 1
    assert "(continued)" in head
    again = re.search(r" *\\toprule.*?\\midrule", head, re.S)[0]
    assert again in first
    assert part.count(again) == 2
    assert rows.count(r"\\") == MOST_ROWS + 1
    assert made.count(r"\begin{xltabular}") == made.count(r"\end{xltabular}") >= 1
    assert r"\begin{table}" not in part
    assert r"\begin{table}" in made
    (columns,) = re.findall(r"multicolumn\{(\d+)\}\{r@\{\}\}\{continued", part)
    kinds = re.search(r"linewidth\}\{@\{\}(.*?)@\{\}\}\n", part)[1]
    assert int(columns) == len(kinds.replace(RAGGED, "").replace(r"@{\ }", ""))


FORMULA = "=cmd()\n\n# b [x](http://y) <script>\x1b[31m"


def test_a_name_stays_a_name(tmp_path):
    """It is no formula of a spreadsheet, and ends no line; no HTML, no link, nothing to obey."""
    found = compare_answer()
    found["contenders"][1]["arm"] = found["differences"][0]["arm"] = FORMULA
    found["learning_rates"][FORMULA] = found["learning_rates"].pop("twin")
    found["twins"]["adamw"]["key"] = FORMULA
    found["about"]["cautions"] = [FORMULA]
    made = {p.suffix: p.read_text() for p in Comparison().render_answer(found, tmp_path)}
    for suffix in (".md", ".tex"):
        assert "\x1b" not in made[suffix]
        assert "\n# b" not in made[suffix]
    for harmful in ("<script", "](http"):
        assert harmful not in made[".md"]
    cells = [c for row in csv.reader(made[".csv"].splitlines(keepends=True)) for c in row]
    assert f"'{FORMULA}" in cells
    assert not [c for c in cells if c.startswith("=")]


class Page(HTMLParser):
    """Holds the tags of a page; fails where one is not closed."""

    def __init__(self, html):
        super().__init__()
        self.open, self.tags, self.text = [], [], []
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "wbr"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_the_page_is_whole_and_asks_for_nothing(rendered):
    """Names are escaped, every picture has words, and there is no script."""
    html = rendered[".html"]
    page = Page(html)
    assert "<i>&50" not in html
    assert "a_b|<i>&50%\\u202e" in "".join(page.text)
    assert "script" not in {tag for tag, _ in page.tags}
    links = [a.get("href", a.get("src")) for _, a in page.tags if "href" in a or "src" in a]
    assert links == ["data:,"]
    pictures = [a for _, a in page.tags if a.get("role") == "img"]
    assert len(pictures) in (2, 3)
    assert all("Best: 1." in a["aria-label"] for a in pictures)


def test_intervals_lie_on_one_axis():
    """A mean is where its value says, what reaches far is cut; 0 and the tolerance show."""
    bars = [Bar("a", Interval(1.0, 0.5, 9.0), True), Bar("b", Interval(0.0, -0.5, 0.5), False)]
    drawn = drawn_intervals(Intervals("costs", "nats", [("arms", bars)], 0.5))
    [(_, within, (a, b))] = drawn.groups
    places = {k: float(getattr(a, k).removesuffix("%")) for k in ("left", "width", "mean")}
    zero, half = float(drawn.zero[:-1]), float(within[1][:-1])
    assert places["mean"] - zero == pytest.approx(2 * half, abs=0.05)
    assert places["left"] - zero == pytest.approx(half, abs=0.05)
    assert places["left"] + places["width"] == pytest.approx(100)
    assert (b.mean, b.text, b.is_told) == (drawn.zero, "0.0000 [-0.5000, 0.5000]", False)
    both = drawn_intervals(Intervals("costs", "nats", [("arms", bars)], 0.5, {"arms"}))
    (left, width) = (float(x[:-1]) for x in both.groups[0][1])
    assert (left + width / 2, width) == pytest.approx((zero, 2 * half), abs=0.05)
    assert drawn.ticks[0] == ("6.67%", "-0.5") or "0" in [word for _, word in drawn.ticks]


def test_one_arm_far_away_leaves_room_for_the_others():
    """By an axis that is logarithmic far from 0, and says so."""
    near = [Bar(str(x), Interval(x, x - 0.01, x + 0.01), True) for x in (-0.02, 0.0, 0.02)]
    far = Bar("far", Interval(1.5, 1.4, 1.6), True)
    drawn = drawn_intervals(Intervals("costs", "nats", [("arms", [*near, far])], 0.05))
    [(_, within, bars)] = drawn.groups
    places = [float(bar.mean[:-1]) for bar in bars]
    assert places == sorted(places)
    assert places[2] - places[0] > 8
    assert float(within[1][:-1]) > 10
    assert [word for _, word in drawn.ticks] == ["-0.1", "0", "0.1", "1"]
    assert drawn.note.endswith("Far from 0 the axis is logarithmic.")
    plain = drawn_intervals(Intervals("costs", "nats", [("arms", near)], 0.05))
    assert "logarithmic" not in plain.note


def test_what_costs_how_much_is_one_picture():
    """Sets of factors, shares, operands, groups, changes and chaos, each with its interval."""
    picture = explanation(explain_answer()).sections[0].parts[-1]
    found = {title: [b.label for b in bars] for title, bars in picture.groups}
    assert found == {
        "chaos alone": ["null arm"],
        "sets of factors": ["U"],
        "share of each factor": ["U"],
        "one operand at a time": ["stored_weight"],
        "one group of layers at a time": [HOSTILE, "h.0"],
        "changes": ["left in float32"],
    }
    told = [b.is_told for _, bars in picture.groups for b in bars]
    assert told == [False, True, True, True, True, False, False]


def test_a_picture_goes_by_the_corrected_p():
    """As the tables do: an interval beside 0 is not enough."""
    found = compare_answer()
    found["contenders"][0]["p_holm"] = 0.06
    bars = dict(comparison(found).sections[0].parts[0].groups)["gap to the float32 twin"]
    assert [(b.label, b.is_told) for b in bars] == [("E4M3", False), (HOSTILE, False)]
    found["contenders"][0]["p_holm"] = 0.04
    bars = dict(comparison(found).sections[0].parts[0].groups)["gap to the float32 twin"]
    assert [b.is_told for b in bars] == [False, True]


def test_losses_over_learning_rates_are_drawn():
    """Every rate that was tried; where a run diverged there is a mark instead of a point."""
    [section] = rate_curves(explain_answer())
    drawn = drawn_curves(section.parts[1])
    assert [panel.arm for panel in drawn.panels] == ["twin", "U", "frozen"]
    panel = drawn.panels[0]
    assert panel.dots.count("M") == 3
    assert panel.line.count("l") == 1
    assert len(panel.diverged) == 1
    assert [word for _, word in panel.x_ticks] == ["0.333", "1", "3"]
    assert "a run diverged" in drawn.note


# ------------------------------------------------------------------------- from the core


def study(folder, found):
    """Write a study's folder with an answer."""
    folder.mkdir(parents=True)
    (folder / "study.json").write_text(json.dumps({"questions": [QUESTION]}))
    (folder / f"{found['about']['page']}.json").write_text(json.dumps(with_digest(found)))
    return folder


QUESTION = {"command": "compare", "asked": {}, "arms": {}, "seeds": [1], "within": 0.1, "steps": 5}
QUESTION |= {"page": "compare"}


def test_an_answer_is_rendered_again(capsys, tmp_path):
    """Into the study's folder, or another; by the name of the answer, too."""
    folder = study(tmp_path / "s", compare_answer())
    outcome = call(capsys, "report", "comparison", "--from", folder)
    assert outcome.out.splitlines() == [str(folder / f"compare{end}") for end in RENDERERS]
    out = tmp_path / "new/out"
    call(capsys, "report", "comparison", "compare", "--from", folder, "--out", out)
    assert (out / "compare.tex").is_file()
    outcome = call(capsys, "report", "comparison", "compar", "--from", folder)
    assert outcome.code == 2
    assert "has no answer 'compar' (did you mean compare?)" in outcome.err
    outcome = call(capsys, "report", "explanation", "--from", folder)
    assert outcome.code == 2
    assert "renders none of the answers" in outcome.err
    # What another one would write elsewhere.
    forged = compare_answer()
    forged["about"]["page"] = "../../EVIL"
    (folder / "compare.json").write_text(json.dumps(forged))
    outcome = call(capsys, "report", "comparison", "--from", folder, "--out", out)
    assert outcome.code == 2
    assert "compare.json is not the answer of a study: about.page: '../../EVIL'" in outcome.err
    assert not list(tmp_path.glob("**/EVIL*"))
    changed = with_digest(compare_answer()) | {"twins": {}}
    (folder / "compare.json").write_text(json.dumps(changed))
    outcome = call(capsys, "report", "comparison", "--from", folder, "--out", out)
    assert outcome.code == 2


def test_an_answer_that_cannot_be_rendered_is_there(shelf, monkeypatch, tmp_path):
    """Whoever has no reporter, or a broken one, loses nothing, and reads what to do."""

    @define(eq=False)
    class Broken:
        def render_answer(self, answer, out):
            return 1 / 0

    told = []
    (tmp_path / "compare.md").write_text("of an earlier answer")
    shelf.install("reporter", "broken", Broken, "acme", "1.5")
    for name, says in (
        ("broken", "broken (acme 1.5) failed in render_answer: ZeroDivisionError"),
        ("missing", "with altcore-reporters installed, altcore report missing --from"),
    ):
        monkeypatch.setattr(answers, "defaults", lambda name=name: {"answers": {"compare": name}})
        found = answers.write(tmp_path, {**compare_answer(), "loss": float("inf")}, told.append)
        assert found["loss"] == "inf"
        assert json.loads((tmp_path / "compare.json").read_text()) == with_digest(found)
        assert says in told[-1]
        assert f"altcore report {name} --from {tmp_path}" in told[-1]
        assert not (tmp_path / "compare.md").exists()


def test_a_reporter_without_the_method_is_refused(shelf):
    with pytest.raises(BadInput, match=r"page .* renders no answers of studies"):
        answers.render(answers.Reporter.named("page"), [], None)
