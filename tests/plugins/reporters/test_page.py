"""The reporter ``page``: what it says of records, that it is safe and small, when it is written."""

import random
import re
import time
from html.parser import HTMLParser
from itertools import combinations, pairwise
from pathlib import Path

import attrs
import pytest
from helpers import run_directory
from helpers_cli import call
from helpers_pages import MadeUp, losses, run

import altcore
from altcore import hookimpl
from altcore.errors import PluginError
from altcore.plugin import read_run
from altcore_reporters import FormatComparator
from altcore_reporters.frames import runs_frame
from altcore_reporters.page.contents import contents_of
from altcore_reporters.page.plots import Look
from altcore_reporters.page.reporter import Page, html_of
from altcore_reporters.page.tables import configurations_table, events_table
from altcore_reporters.page.verdict import figures_of_runs, verdict_of_run, verdict_of_runs
from altcore_reporters.pictures import grouped

HOSTILE = "<script>alert(1)</script>\"'&{{7*7}}\u202egnp\u200f\0"
VOID = {"meta", "link", "path", "use", "input", "br"}


class Tags(HTMLParser):
    """Reads a page: its tags and texts, and whether each tag is closed where it should be."""

    def __init__(self, page):
        super().__init__()
        self.open, self.found, self.texts, self.broken = [], [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        if tag in VOID:
            return
        if not self.open or self.open[-1] != tag:
            self.broken.append((tag, self.open[-3:]))
        else:
            self.open.pop()

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.texts.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split()).replace("\u00a0", " ")


@pytest.fixture(scope="module")
def many():
    """A page on five formats with three seeds each, one of which never learns."""
    lows = {"E4M3": 2.0, "E5M2": 2.2, "E3M4": 2.4, "INT8": 2.6, "E7M0": 4.0}
    seeds = (1, 2, 3)
    return html_of([run(f, s, low=low + s * low / 2000) for f, low in lows.items() for s in seeds])


# What it says -------------------------------------------------------------------------------------


def test_a_run_gets_a_verdict_and_the_numbers_that_decide_it():
    page = Tags(html_of([run("E7M0", low=4.0)]))
    assert "E7M0 (pure) did not learn." in page.text
    reason = "The validation loss at step 40 is 4.100, 28.1 % above the unigram entropy"
    assert reason in page.text
    for figure in (
        "validation loss unigram entropy 3.200 4.100",
        "updates stalled of stored weights 90 %",
    ):
        assert figure in page.text
    assert (page.broken, page.open) == ([], [])


@pytest.mark.parametrize(
    ("summary", "says"),
    [
        ({"status": "unfinished", "steps": 7, "max_steps": 40}, "is not over: step 7 of 40"),
        (
            {"verdict": "not known: nothing was evaluated"},
            "Whether E4M3 (pure) learned is not known",
        ),
        ({"verdict": "did not learn; collapsed at step 9"}, "did not learn; collapsed at step 9."),
        ({"format": "none", "name": "plain"}, "plain (not quantized) learned."),
        ({"format": None, "name": "plain"}, "plain learned."),
    ],
)
def test_the_verdict_on_every_end(summary, says):
    assert says in verdict_of_run(run(summary=summary)).sentence


def test_the_reason_of_a_failure_is_told():
    failed = run(summary={"failure_step": 9, "failure_reason": "too many NaN"})
    assert "Step 9: too many NaN." in verdict_of_run(failed).reasons


def verdict(*records):
    found = verdict_of_runs(grouped(records))
    return " ".join([found.sentence, *found.reasons])


def test_the_verdict_on_several_runs_names_the_best_and_what_never_learned(many):
    text = Tags(many).text
    assert "12 of 15 runs learned; E4M3 ends lowest, at 2.102 (2.101 to 2.103)." in text
    assert "That is 0.2 below E5M2, and lower with each of 3 seeds." in text
    assert "No run learned of E7M0." in text


def test_the_verdict_says_when_seeds_do_not_tell_two_apart():
    losses = {"E4M3": (2.0, 2.4, 2.3), "E5M2": (2.1, 2.3, 2.6)}
    records = [run(f, s, low=low) for f, lows in losses.items() for s, low in enumerate(lows)]
    assert "lower with only 2 of 3 seeds: they do not tell the two apart" in verdict(*records)
    one = [run(f, low=low) for f, low in (("E4M3", 2.0), ("E5M2", 2.1))]
    assert "with one seed each, a small gap may be chance" in verdict(*one)
    other = [run("E4M3", 1, low=2.0), run("E4M3", 2, low=2.3), *records[3:5]]
    assert "their seeds overlap: they do not tell the two apart" in verdict(*other)


def test_the_verdict_counts_seeds_and_not_runs():
    """A copied run is no second seed, and weighs no more in the mean."""
    twice = [run(f, 1, low=low) for f, low in (("E4M3", 2.0), ("E5M2", 2.1)) for _ in range(2)]
    assert "with one seed each, a small gap may be chance" in verdict(*twice)
    more = [*twice, run("E4M3", 2, low=2.6), run("E5M2", 2, low=2.9)]
    assert "E4M3 ends lowest, at 2.400 (2.100 to 2.700)" in verdict(*more)
    assert "lower with each of 2 seeds" in verdict(*more)


def of_seeds(fmt, **losses):
    """Runs of a format, by seed: s1=2.0."""
    return [run(fmt, int(seed[1:]), low=low) for seed, low in losses.items()]


def test_the_verdict_goes_by_the_seeds_that_all_have():
    """E4M3 has an easy seed more, and is above in the others: in two, or in one by chance."""
    easy = of_seeds("E4M3", s1=2.6, s2=2.601, s3=2.602, s4=1.2)
    hard = of_seeds("E5M2", s1=2.5, s2=2.5, s3=2.503)
    said = verdict(*easy, *hard)
    assert "E5M2 ends lowest, at 2.601 (2.600 to 2.603)" in said
    assert "The seeds differ: the means are over those that all have (1, 2, 3)." in said
    assert "lower with each of 3 seeds." in said
    said = verdict(*easy, *hard, *of_seeds("E7M0", s1=2.9))
    assert "E4M3 ends lowest, at 2.351" in said
    assert "fewer than two are common to all" in said
    assert "In the seeds that both have, it is above E5M2." in said


def test_the_verdict_says_where_the_lowest_failed():
    """What is left of a configuration that collapsed is its lucky seeds."""
    survivors = of_seeds("E5M2", s1=2.0, s2=2.01)
    collapsed = run("E5M2", 3, low=1.0, summary={"status": "collapsed", "learned": False})
    said = verdict(*survivors, collapsed, *of_seeds("E4M3", s1=2.5, s2=2.51, s3=2.52))
    assert "at 2.105 (2.100 to 2.110) (it failed in 1 seed in which another finished)" in said


def test_page_and_report_conclude_the_same():
    """Two seeds that both go one way are lower, and too few to tell: the report's rule."""
    records = [*of_seeds("E4M3", s1=2.0, s2=2.6), *of_seeds("E5M2", s1=2.1, s2=2.9)]
    assert "lower with each of 2 seeds, but these do not tell the two apart." in verdict(*records)
    frame = runs_frame(records)
    assert not FormatComparator(frame).finished.lead("val_loss")[0].is_clear


def test_a_copy_counts_once_on_the_page():
    """Two runs, the directories of which were copied, are two."""
    environments = [{"run_id": text} for text in "abab"]
    records = [
        run("E7M0", seed, low=4.0, environment=own, name=f"r{i}")
        for i, (seed, own) in enumerate(zip((1, 2, 1, 2), environments, strict=True))
    ]
    said = verdict(*records)
    assert "0 of 2 runs learned" in said
    assert "Copies of other runs, which count once: r2, r3." in said
    assert figures_of_runs(grouped(records))[0].value == "0 of 2"

    row = configurations_table(grouped(records), [Look()]).rows[0]
    assert [cell.text for cell in row[1:3]] == ["2", "0"]


def test_a_loss_that_is_not_finite_is_a_failure():
    """A summary holds null for it, as for a run that was never evaluated."""
    three = of_seeds("E5M2", s1=2.0, s2=2.01), of_seeds("E4M3", s1=2.5, s2=2.51, s3=2.52)
    lost = {"val_loss": None, "evaluation": {"step": 40, "val_loss": None}}
    broken, never = ({**lost, "learned": learned} for learned in (False, None))
    failed = "it failed in 1 seed in which another finished"
    assert failed in verdict(*three[0], run("E5M2", 3, summary=broken), *three[1])
    assert failed not in verdict(*three[0], run("E5M2", 3, summary=never), *three[1])
    reasons = verdict_of_run(run(summary=broken)).reasons
    assert "The validation loss at step 40 is not finite." in reasons


def test_losses_of_other_data_are_not_compared_in_silence():
    facts = {"workload_facts": {"unigram_entropy": 3.2, "sha256": "other"}}
    said = verdict(run("E4M3"), run("E5M2", summary=facts))
    assert "The runs differ in their data or model" in said
    assert "differ in their data" not in verdict(run("E4M3"), run("E5M2"))


def test_there_is_a_plot_for_each_thing_measured_and_a_word_for_each_other(many):
    titles = [plot.title for plot in contents_of([run()]).plots]
    stalled = "Stalled updates of stored weights"
    assert titles == ["Loss", stalled, "Flushed to zero", "Gradient norm"]
    text = Tags(html_of([run()])).text
    assert "Overflow: every scale follows the largest magnitude" in text
    assert "Layers by steps: the plugins bit-stall, ulp-stats and shadow measure them." in text
    assert "the plugin value-histogram measures them" in text


def test_the_page_of_many_runs_says_what_only_fewer_show():
    """Heat maps of up to 24 configurations are drawn; values on the grid are those of one run."""
    stall = {"step": 9, "bit-stall/stored_stall_share/h.0": 0.5}
    runs = [
        run(config={"learning_rate": i}, name=f"r{i}", metrics=[*losses(9), stall])
        for i in range(25)
    ]
    few, many = contents_of(runs[:24]), contents_of(runs)
    assert len(few.heats) == 24
    assert not any("Layers by steps" in line for line in few.missing)
    assert many.heats == []
    assert any("at most 24 configurations, and these are 25" in line for line in many.missing)
    assert "only the page of one run draws them" in few.missing[-1]


def test_activations_in_blocks_are_missing_by_name():
    key = "value-histogram/weight_E2M1"
    line = {"step": 9, f"{key}_histogram": [0.0, 0.0, *[0.5] * 2, 0.0], f"{key}_low": 0}
    page = contents_of([run("NVFP4", metrics=[*losses(9), line])])
    assert [bars.title for bars in page.values] == ["Weights"]
    assert any("a scale for each block or channel" in words for words in page.missing)


@pytest.mark.parametrize(
    ("fmt", "least", "lost"),
    [("E4M3", -9, 0.5), ("INT8", 0, 0.5), ("posit8_0", -6, 0.0), ("posit8_1", -12, 0.0)],
)
def test_values_are_said_to_round_to_zero_where_they_do(fmt, least, lost):
    """No posit does; of all others half of what is small here lies at half the least value."""
    key = f"value-histogram/weight_{fmt}"
    shares = [0.0, 0.25, *[0.25, 0.0], *[0.0] * 2, *[0.5, 0.0], 0.0]
    line = {"step": 9, f"{key}_histogram": shares, f"{key}_low": least - 2}
    (bars,) = contents_of([run(fmt, metrics=[line])]).values
    assert ("50\xa0% round to zero" in bars.note) == bool(lost)
    assert bool(bars.flushed) == bool(lost)


def test_a_single_value_is_drawn_as_a_dot():
    plots = {p.key: p for p in contents_of([run(metrics=[{"step": 1, "grad_norm": 2.0}])]).plots}
    assert any(shape.css.startswith("dots") for shape in plots["grad_norm"].shapes)
    assert not any(s.css.startswith("dots") for s in contents_of([run()]).plots[-1].shapes)


@pytest.mark.parametrize(("share", "level"), [(0.0, 0), (1.0, 8)])
def test_a_heat_map_of_one_value_says_how_far_from_0_it_is(share, level):
    line = {"step": 9, "bit-stall/stored_stall_share/h.0": share}
    ((_, (heat,)),) = contents_of([run(metrics=[*losses(9), line])]).heats
    assert [at for at, _ in heat.paths] == [level]
    assert (heat.low, heat.high) == ("0 %", "100 %")


def test_marks_are_drawn_where_things_happened():
    collapse = {"step": 20, "event": "collapse", "cause": "diverged", "reason": "it diverged"}
    page = Tags(html_of([run(events=[collapse])]))
    (mark,) = [a for tag, a in page.found if tag == "span" and a.get("class") == "mark"]
    assert mark["title"] == "training, step 20: it diverged"
    assert mark["style"].startswith("left:48.72%")
    assert "it diverged" in page.text.partition("What happened")[2]


@pytest.mark.parametrize("runs", [1, 2])
def test_what_happened_is_never_cut_in_silence(runs):
    """A collapse comes after most of what was not finite."""
    collapse = {"step": 900, "event": "collapse", "cause": "diverged", "reason": "it diverged"}
    nan = [{"step": 3 * i, "event": "nan", "what": "loss"} for i in range(1, 251)]
    one = run(events=[*nan, collapse])
    others = [run(name=f"r{i}") for i in range(runs - 1)]
    table = events_table([one, *others])
    assert len(table.rows) == 201
    assert [cell.text for cell in table.rows[-2]][-2:] == ["collapse", "it diverged"]
    last = [cell.text for cell in table.rows[-1]]
    assert last[-2:] == ["left out", "51 more, not finite or warnings, which the record has"]
    assert "51 more, not finite" in Tags(html_of([one, *others])).text
    assert len(events_table([run(events=nan[:200])]).rows) == 200


def test_a_loss_that_diverged_hides_no_other():
    lines = [{"step": s, "loss": 5.0 - s / 20 if s < 30 else 1e6} for s in range(1, 41)]
    (plot, *_) = contents_of([run(metrics=lines)]).plots
    assert plot.y.high < 10
    assert "1e+06" in plot.note


def test_every_picture_has_a_description_and_its_table(many):
    stall = {f"bit-stall/stored_stall_share/h.{i}": i / 4 for i in range(4)}
    key = "value-histogram/weight@fwd_E4M3"
    values = {f"{key}_histogram": [0.1, 0.0, *[0.01] * 90, 0.0], f"{key}_low": -40}
    pages = [many, html_of([run(metrics=[*losses(9), {"step": 9, **stall, **values}])])]
    for text in pages:
        page = Tags(text)
        pictures = [a for _, a in page.found if a.get("role") == "img"]
        tables = [a for _, a in page.found if a.get("class") == "behind"]
        assert len(pictures) == len(tables) >= 5
        assert all("The table follows." in a["aria-label"] for a in pictures)
        assert (page.broken, page.open) == ([], [])
        assert not re.search(r"<th[^>]*></th>", text)


def test_the_table_of_a_plot_carries_no_value_to_a_step_where_none_was_measured():
    """Columns are steps that most runs have, and the last value is told though it has none."""
    rare = run("E5M2", metrics=[{"step": s, "val_loss": s / 100} for s in (100, 200)])
    often = run("E3M4", metrics=[{"step": s, "val_loss": 1.0} for s in range(50, 301, 50)])
    plot = next(p for p in contents_of([rare, often]).plots if "alidation" in p.title)
    table = dict(plot.rows)
    (values,) = (v for label, v in table.items() if "E5M2" in label)
    assert plot.head == ["curve", *(f"step {s}" for s in (50, 100, 150, 200, 250, 300))]
    assert values == ["–", "1", "–", "2", "–", "–"]
    assert "ends at 2" in plot.description


JUNK = (None, True, 0, -3, 10**30, 1e300, -1e-300, float("inf"), float("nan"), "word", "", [], {})
JUNK += ([1, "a"], {"a": None}, "nan", [0.1] * 5)
KEYS = (
    *("loss", "val_loss", "grad_norm", "stored_stall_rate", "overflow_rate", "other"),
    *("ulp-stats/stored_mean/h.0", "bit-stall/stored_stall_share/h.1", "shadow/injected/x"),
    *("value-histogram/weight@fwd_E4M3_histogram", "value-histogram/weight@fwd_E4M3_low"),
)
KINDS = ("start", "nan", "collapse", "verdict", "recipe", "rollback", "warning", "degraded", "new")
PARTS = ("reason", "cause", "message", "error", "plugin", "from", "to", "what", "layer", "value")


def drawn(draw):
    """A record that no version of altcore writes, with the types that every reader relies on."""

    def some(keys):
        return {key: draw.choice(JUNK) for key in draw.sample(keys, draw.randrange(len(keys)))}

    def losses_are_numbers(line):
        bad = [
            k
            for k in ("loss", "val_loss", "grad_norm")
            if not isinstance(line.get(k, 0), int | float)
        ]
        return {k: v for k, v in line.items() if k not in bad}

    number = draw.randrange(6)
    summary = some(
        [*KEYS[:2], "format", "recipe", "seed", "verdict", "item", "seconds", "val_loss"]
    )
    return MadeUp(
        draw.choice(("a", "b", HOSTILE)),
        summary={**summary, "status": draw.choice(("finished", "unfinished", "failed"))},
        config=some(["format", "recipe", "plugins", "settings", "seed", "tags", "new"]),
        environment=some(["command", "git", "libraries", "plugins", "device"]),
        metrics=[losses_are_numbers({"step": s + 1, **some(KEYS)}) for s in range(number)],
        events=[{"step": s, "event": draw.choice(KINDS), **some(PARTS)} for s in range(number)],
    )


def test_whatever_a_record_holds_there_is_a_page():
    """It is the default of every run: a value that it does not expect must not break it."""
    draw = random.Random(0)
    for _ in range(150):
        records = [drawn(draw) for _ in range(draw.choice((1, 1, 2, 5)))]
        page = Tags(html_of(records))
        assert (page.broken, page.open) == ([], [])


def test_a_record_without_anything_is_a_page():
    page = Tags(html_of([MadeUp("empty")]))
    assert "Nothing was recorded." in page.text
    assert "Whether empty learned is not known" in page.text


@pytest.mark.parametrize(
    ("processes", "changes", "told"),
    [
        (1, [], "It is repeated by altcore train --config config.yaml , with the file"),
        (2, [], "It is repeated by torchrun --nproc-per-node 2 -m altcore train --config"),
        (
            1,
            [{"step": 7, "what": "learning_rate", "before": 0.1, "now": 0.2}],
            "No one command repeats it, since it went on with changes: learning_rate after step 7",
        ),
    ],
)
def test_the_page_says_what_repeats_a_run(processes, changes, told):
    """As many processes; and nothing does where the run went on with other keys."""
    command = ["/x/altcore/__main__.py", "train", "--name", "a b"]
    about = {"world_size": processes, "command": command}
    record = run(environment=about, config={"changes": changes})
    text = Tags(html_of([record])).text
    assert told in text
    program = "torchrun --nproc-per-node 2 -m" if processes == 2 else "python -m"
    assert f"{program} altcore train --name 'a b'" in text
    several = Tags(html_of([record, run(name="other", seed=2)])).text
    if changes:
        assert "but for those that went on with changes: " in several
    elif processes == 2:
        assert "Each run is repeated by the command on its own page." in several
    else:
        assert "Each run is repeated by altcore train --config config.yaml" in several


def test_an_infinite_loss_is_called_so():
    """Infinity and NaN are different findings."""
    lines = losses(3)
    lines[1]["loss"] = float("inf")
    assert "inf" in Tags(html_of([run(metrics=lines)])).text


# Safe ---------------------------------------------------------------------------------------------


def test_nothing_in_a_record_becomes_markup():
    """Names, reasons, layers, settings, findings, addresses."""
    hostile = run(
        name=HOSTILE,
        fmt=HOSTILE,
        config={"label": HOSTILE, HOSTILE: HOSTILE},
        environment={"git": HOSTILE, "command": ["altcore", HOSTILE]},
        summary={
            "verdict": HOSTILE,
            "failure_reason": HOSTILE,
            "findings": {HOSTILE: [HOSTILE, {HOSTILE: HOSTILE}]},
            "degraded": [HOSTILE],
        },
        events=[{"step": 3, "event": "collapse", "cause": "c", "reason": HOSTILE}],
        metrics=[*losses(9), {"step": 9, f"ulp-stats/stored_mean/{HOSTILE}": 1.0}],
    )
    hostile.url = "javascript:alert(1)"
    other = run(name=HOSTILE, seed=2, summary={"verdict": HOSTILE})
    other.url = 'https://there.example/"onclick="alert(1)'
    for records in ([hostile], [hostile, other]):
        text = html_of(records)
        page = Tags(text)
        assert (page.broken, page.open) == ([], [])
        assert [tag for tag, _ in page.found].count("script") == 1
        assert "alert(1)" in page.text
        assert r"\u202egnp\u200f\u0000" in page.text  # what turns text around is told
        assert not re.search("[\u202e\u200f\0]", text)
        assert not any(name.startswith("on") for _, a in page.found for name in a)
        assert all(
            a["href"].startswith(("#", "https://", "data:,")) for _, a in page.found if "href" in a
        )


def test_the_page_asks_the_network_for_nothing(many):
    page = Tags(many)
    assert not [tag for tag, a in page.found if "src" in a or tag in ("img", "iframe", "object")]
    (policy,) = [
        a["content"] for _, a in page.found if a.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy.startswith("default-src 'none';")
    assert not re.search(r"url\(|@import|https?://", many)


# Small --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_long_run_with_all_diagnostics_is_a_page_at_once():
    """10,000 steps, 200 of them measured in 50 layers: under 2 MB, in under 3 s."""
    layers = [f"transformer.h.{i}.mlp.c_fc" for i in range(50)]
    names = ("bit-stall/stored_stall_share", "ulp-stats/stored_mean", "shadow/injected")
    names += tuple(f"other/measure_{i}" for i in range(20))
    lines = losses(10_000)
    for line in lines[::50]:
        line |= {f"{name}/{layer}": line["loss"] / 6 for name in names for layer in layers}
    began = time.process_time()  # other processes take time as well
    text = html_of([run(metrics=lines)])
    assert time.process_time() - began < 3
    assert len(text.encode()) < 2e6


# Colours ------------------------------------------------------------------------------------------

# Machado, Oliveira & Fernandes (2009), severity 1, on linear RGB.
SIGHT = {
    "usual": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}
TO_LMS = [
    [0.4122214708, 0.5363325363, 0.0514459929],
    [0.2119034982, 0.6806995451, 0.1073969566],
    [0.0883024619, 0.2817188376, 0.6299787005],
]
TO_LAB = [
    [0.2104542553, 0.7936177850, -0.0040720468],
    [1.9779984951, -2.4285922050, 0.4505937099],
    [0.0259040371, 0.7827717662, -0.8086757660],
]
STYLE = (
    Path(altcore.__file__).parents[1] / "plugins/reporters/altcore_reporters/page/style.css"
).read_text()
THEMES = [
    dict(re.findall(r"--(\w+): (#\w{6})", part))
    for part in re.findall(r":root \{(.*?)\}", STYLE, re.S)
]


def times(matrix, vector):
    return [sum(a * b for a, b in zip(row, vector, strict=True)) for row in matrix]


def linear(colour):
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    return [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]


def seen(colour, sight):
    """A colour in OKLab, as someone sees it."""
    rgb = [min(1.0, max(0.0, c)) for c in times(SIGHT[sight], linear(colour))]
    return times(TO_LAB, [c ** (1 / 3) for c in times(TO_LMS, rgb)])


def contrast(one, other):
    """WCAG 2.2's ratio."""
    low, high = sorted(times([[0.2126, 0.7152, 0.0722]], linear(c))[0] for c in (one, other))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", THEMES[:2], ids=["light", "dark"])
@pytest.mark.parametrize("sight", SIGHT)
def test_everybody_tells_the_colours_apart(theme, sight):
    """Just noticeable is 0.02 in OKLab; lines are thin, so that they need more."""
    curves = [seen(theme[f"c{i}"], sight) for i in range(8)]
    for one, other in combinations(curves, 2):
        assert sum((a - b) ** 2 for a, b in zip(one, other, strict=True)) ** 0.5 > 0.07
    lights = [seen(theme[f"h{i}"], sight)[0] for i in range(9)]
    steps = [b - a for a, b in pairwise(lights)]
    assert all(s > 0.02 for s in steps) or all(s < -0.02 for s in steps)


@pytest.mark.parametrize("theme", THEMES, ids=["light", "dark", "print"])
def test_everybody_can_read_it(theme):
    paper = {"paper": "#ffffff", **{k: v for k, v in theme.items() if k == "paper"}}["paper"]
    for name, least in (("ink", 7), ("soft", 4.5), ("accent", 4.5), ("bad", 4.5)):
        if name in theme:
            assert contrast(theme[name], paper) >= least
    for i in range(8):
        assert contrast(theme[f"c{i}"], paper) >= 2.9


# When it is written -------------------------------------------------------------------------------


def test_a_run_ends_with_its_page(start):
    """Nothing else of the run is different."""
    plain, paged = (
        start(plugins, name=name) for plugins, name in (([], "plain"), (["page"], "paged"))
    )
    path = paged.run_directory / "reports" / "page.html"
    assert "reports/page.html" in read_run(paged.run_directory).summary["reports"]
    assert "paged (not quantized) did not learn." in Tags(path.read_text()).text
    metrics = [(r.run_directory / "metrics.jsonl").read_bytes() for r in (plain, paged)]
    assert metrics[0] == metrics[1]


def test_a_run_that_fails_ends_with_its_page_too(start, shelf):
    @attrs.define(eq=False)
    class Breaks:
        @hookimpl
        def pre_step(self, step):
            if step.index == 2:
                raise RuntimeError("out of luck")

    shelf.install("intervention", "breaks", Breaks)
    with pytest.raises(PluginError):
        start(["breaks", "page"], name="r")
    page = Tags((start.runs / "r" / "reports" / "page.html").read_text())
    assert "failed at step 2" in page.text
    assert "out of luck" in page.text
    assert read_run(start.runs / "r").summary["reports"] == ["reports/page.html"]


def test_the_page_of_a_run_that_goes_on_is_loaded_again(tmp_path):
    directory = run_directory(tmp_path, name="r")
    line = '{"step": 1, "loss": 3.0}\n{"step": 2, "lo'  # torn, as it may be while it is written
    (directory.path / "metrics.jsonl").write_text(line)
    directory.close()
    (written,) = Page().render([read_run(directory.path)], tmp_path)
    page = Tags(written.read_text())
    assert any(a.get("http-equiv") == "refresh" for _, a in page.found)
    assert "step 1" in page.text
    assert not any(a.get("http-equiv") == "refresh" for _, a in Tags(html_of([run()])).found)


def test_the_command_writes_pages(capsys, start):
    start(name="a")
    start(name="b", seed=7)
    one = call(capsys, "report", "page", "a", "--runs-dir", start.runs)
    assert (one.code, one.out.strip()) == (0, str(start.runs / "a" / "reports" / "page.html"))
    out = start.runs.parent / "both"
    both = call(capsys, "report", "page", "--from", start.runs, "--out", out)
    assert both.code == 0
    assert "2 runs" in Tags((out / "page.html").read_text()).text
