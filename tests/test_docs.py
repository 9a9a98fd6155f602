"""The documentation: nothing undocumented, nothing documented that is not there, and it runs."""

import inspect
import itertools
import json
import re
import signal
import subprocess
import sys
import tomllib
from functools import cache

import click
import pytest
import yaml
from helpers import Starter, forget_installed
from helpers_cli import ROOT, call, distribution
from helpers_crashes import forked

import altcore
from altcore.cli import COMMANDS, cli
from altcore.config import TrainConfig, load_config
from altcore.config.original_keys import renamed_keys
from altcore.engine import loop as engine
from altcore.engine.returns import LONGEST_LINE, LONGEST_MEASURE, MOST_FINDINGS
from altcore.errors import EXIT_CODES, Source
from altcore.formats import OVERFLOWS, ROUNDINGS, get_format
from altcore.hooks import (
    ACTING,
    HOOKS,
    MEASURING,
    NEEDS,
    ON_DUE_STEPS,
    WATCHING,
    Placing,
    actions,
    describe_settings,
)
from altcore.hooks import specs as hookspecs
from altcore.recipes import NAMED, OPERANDS, ROLES, read_recipe
from altcore.recipes.cast import SCALINGS, STRAIGHT_THROUGH
from altcore.recipes.cast_reading import CAST_KEYS
from altcore.recipes.layers import SELECTORS
from altcore.registry import KINDS, entries, find, group_of
from altcore.sweep import DEFAULT_RULES, Rule, SweepFile, jobs_of, make_executor, read_sweep
from altcore.sweep.declared import Declared
from altcore.yaml_files import load_yaml
from altcore_reporters.alerts import Alerts
from altcore_reporters.tracking import TrackerReporter

DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = sorted(
    [*DOCS, *ROOT.glob("*.md"), *ROOT.glob("plugins/*/README.md"), *ROOT.glob("examples/*/*.md")]
)
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()
FIRST_PARTY = [e for e in entries() if e.distribution == f"altcore-{e.kind}s"]


@cache
def page(name):
    return (ROOT / "docs" / f"{name}.md").read_text()


def rows(name, heading, level="##"):
    """Return the cells of the tables under a heading of a page, their heads left out."""
    return rows_of(page(name), heading, level)


def rows_of(text, heading, level="##"):
    """Return the cells of the tables under a heading of a text, their heads left out."""
    start = re.search(rf"^{level} {re.escape(heading)}$", text, re.MULTILINE)
    assert start, f"there is no heading {heading!r}"
    end = re.search(rf"^#{{1,{len(level)}}} ", text[start.end() :], re.MULTILINE)
    part = text[start.end() : start.end() + end.start() if end else None]
    lines = [x for x in part.splitlines() if x.startswith("|")]
    cells = [[c.strip() for c in x.strip("|").split("|")] for x in lines]
    heads = [i for i, x in enumerate(lines) if re.fullmatch(r"\|(-+\|)+", x)]
    return [c for i, c in enumerate(cells) if i not in heads and i + 1 not in heads]


def plain(cell):
    """Return a cell without its backticks."""
    return cell.replace("`", "")


# -------------------------------------------------------------------------------- hooks.md


def test_every_hook_is_documented():
    """With its arguments, in the order of the step; and what it returns."""
    found = [r for r in rows("hooks", "Hooks: the events of a step", "#") if "(" in r[0]]
    signatures = [
        f"{h}({', '.join(inspect.signature(getattr(hookspecs, h)).parameters)})" for h in HOOKS
    ]
    assert [plain(r[0]) for r in found[: len(HOOKS)]] == signatures
    returns = {
        "one or several Actions, or None": ACTING,
        "measures or None": MEASURING,
        "a context manager or None": WATCHING,
        "True or False": ("is_due",),
        "lines and rows, or None": ("findings",),
    }
    for hook, (_, when, changes, returned) in zip(HOOKS, found, strict=False):
        expected = [words for words, hooks in returns.items() if hook in hooks]
        assert [returned] == (expected or ["nothing"])
        assert when
        assert changes


def test_the_step_is_written_as_in_the_engine():
    """The page has the engine's own lines."""
    lines = [x for x in engine.__doc__.splitlines() if x.startswith("    ")]
    assert "\n".join(lines) in page("hooks")


def test_every_hook_has_a_docstring():
    """It is what an editor shows."""
    assert all(inspect.getdoc(getattr(hookspecs, h)) for h in HOOKS)


def test_every_need_is_documented():
    """And no other."""
    found = {plain(r[0]): r[1] for r in rows("hooks", "Needs")}
    assert set(found) == set(NEEDS)
    assert all(found.values())


def parameters_of(function):
    """Return kind and default of each parameter: a fit call of one fits the other."""
    found = inspect.signature(function).parameters
    return {name: (p.kind, p.default) for name, p in found.items()}


def test_every_action_is_documented():
    """With its signature, and the order in which proposals are decided."""
    found = {plain(r[0]).partition("(")[0]: plain(r[0]) for r in rows("hooks", "Actions")}
    names = [c.__name__ for c in actions.PRECEDENCE]
    assert set(found) == {*names, "ShiftFormat"}
    for name, text in found.items():
        shown = eval(f"lambda {text.removeprefix(name)[1:-1]}: None")
        assert parameters_of(shown) == parameters_of(getattr(actions, name))
    assert " > ".join(names) in page("hooks").replace("\n", " ")


def test_every_event_is_documented():
    """Each kind of line that is written to events.jsonl, by the core and the reporters."""
    source = "".join(
        f.read_text() for folder in ("altcore", "plugins") for f in (ROOT / folder).rglob("*.py")
    )
    emitted = set(re.findall(r"(?:emit|write_event)\(\s*\"(\w+)\"", source)) | {"start", "resume"}
    assert {plain(r[0]) for r in rows("hooks", "Events")} == emitted


def test_limits_and_causes_are_documented():
    """Numbers and words that the code compares with."""
    text = page("hooks")
    assert f"at most {LONGEST_MEASURE} numbers" in text
    assert f"{MOST_FINDINGS} at most" in text
    assert f"{LONGEST_LINE} letters" in text
    assert f"{MOST_FINDINGS} columns" in text
    assert all(f"`{hook}`" in text for hook in ON_DUE_STEPS)
    for cause in ("nan_patience", "diverged", "stalled", "dead_gradients"):
        assert cause in text


# ------------------------------------------------------------------------ configuration.md


def shown(default):
    """Return a default as the page writes it: like YAML."""
    if default is None or isinstance(default, bool):
        return {None: "null", True: "true", False: "false"}[default]
    if isinstance(default, dict):
        return "{" + ", ".join(f"{k}: {v}" for k, v in default.items()) + "}"
    return str(default)


def check_settings(found, cls):
    """The rows are the settings: names, types and defaults; each with a meaning."""
    expected = [
        [s["name"], s["type"].replace(" | ", " or "), shown(s["default"])]
        for s in describe_settings(cls)
    ]
    assert [[plain(c) for c in row[:3]] for row in found] == expected
    assert all(row[3] for row in found)


def test_every_key_is_documented():
    """With type, default and meaning, in the order of TrainConfig."""
    check_settings(rows("configuration", "Keys"), TrainConfig)


@pytest.mark.parametrize(
    "entry", [e for e in FIRST_PARTY if e.kind != "format"], ids=lambda e: e.name
)
def test_every_setting_is_documented(entry):
    """Of every first-party plugin, workload and optimizer."""
    name = "sweeps" if entry.kind == "executor" else "configuration"
    found = rows(name, f"`{entry.name}` ({entry.kind})", "###")
    check_settings(found, entry.load())


def test_every_key_of_a_sweep_file_is_documented():
    """With its default and its help."""
    check_settings(rows("sweeps", "The sweep file"), SweepFile)
    check_settings(rows("sweeps", "Declared `resources`", "###"), Declared)


def test_the_rules_of_retry_are_documented():
    """Those for each cause that is built in, in their order, and the settings of a rule."""
    found = rows("sweeps", "Rules of `retry`", "###")
    default = {plain(row[0]): row for row in found if len(row) == 5}
    assert list(default) == list(DEFAULT_RULES)
    for cause, rule in DEFAULT_RULES.items():
        _, _, texts, limit, then = default[cause]
        assert re.findall("`([^`]*)`", texts) == list(rule.patterns)
        assert (int(limit), "as it was" in then) == (rule.limit, rule.repeat)
        assert re.findall("`([^`]*)`", then) == list(rule.halve)
        assert [float(n) for n in re.findall(r"than (\d+)", then)] == [
            *filter(None, rule.halve.values())
        ]
    check_settings([row for row in found if len(row) == 4], Rule)


def test_settings_of_executors_that_are_shown_are_valid():
    """Those of a sweep file."""
    for shown in (yaml.safe_load(text) for _, _, text in YAML if "executors:" in text):
        for name in shown["executors"]:
            make_executor(name, shown["executors"])


def test_every_original_key_is_documented():
    """And what it is short for."""
    found = rows("configuration", "Flat keys of the original experiments")
    assert {plain(a): plain(b) for a, b in found} == renamed_keys()


# ----------------------------------------------------------------------------- commands.md


def options_of(command):
    """Return the long options of a command, but --help."""
    options = [p for p in command.params if isinstance(p, click.Option)]
    return {o for p in options for o in p.opts if o.startswith("--")}


def commands():
    """Return every command that does something, by what is typed."""
    found = {name: cli.get_command(None, name) for name in COMMANDS}
    return [
        (f"altcore {name} {below}".strip(), part)
        for name, command in found.items()
        for below, part in getattr(command, "commands", {"": command}).items()
    ]


@pytest.mark.parametrize(("typed", "command"), commands(), ids=lambda c: getattr(c, "name", c))
def test_every_command_and_option_is_documented(typed, command):
    """And no option that there is not."""
    heading = " ".join(typed.split()[:2])
    found = rows("commands", f"`{heading}`")
    if typed == heading:
        assert {plain(r[0]) for r in found} == options_of(command)
        assert all(r[1] for r in found)
    else:
        (text,) = [r[1] for r in found if plain(r[0]) == typed]
        assert set(re.findall(r"`(--[a-z-]+)`", text)) == options_of(command)


ALONE = [c for c in commands() if c[0].count(" ") == 1]
IN_GROUPS = [c for c in commands() if c not in ALONE]


@pytest.mark.parametrize(("typed", "command"), ALONE, ids=lambda c: getattr(c, "name", c))
def test_the_page_says_what_help_says(typed, command):
    """An option's text on the page begins with its help, and may go on."""
    said = {plain(name): text for name, text in rows("commands", f"`{typed}`")}
    for option in command.params:
        if isinstance(option, click.Option):
            text = re.sub(r"\[(.*?)\]\(.*?\)", r"\1", said[option.opts[0]]).replace("`", "")
            assert text.startswith(option.help.rstrip(".")), option.opts[0]


@pytest.mark.parametrize(("typed", "command"), IN_GROUPS, ids=lambda c: getattr(c, "name", c))
def test_no_summary_is_cut_off(typed, command):
    """In the help of its group, in a terminal of 80 columns."""
    assert not command.get_short_help_str(80 - len("  compare  ") - 2).endswith("..."), typed


def test_no_command_is_documented_that_is_not_there():
    """Neither a group nor what is below it."""
    typed = {name for name, _ in commands()}
    found = set(re.findall(r"^\| `(altcore \w+ \w+)` \|", page("commands"), re.MULTILINE))
    assert found == {t for t in typed if t.count(" ") == 2}
    heads = set(re.findall(r"^## `altcore (\w+)`$", page("commands"), re.MULTILINE))
    assert heads == set(COMMANDS)


def test_options_of_every_command_are_documented():
    """--debug, --log-json and --version."""
    for option in options_of(cli):
        assert f"`{option}`" in page("commands")


def test_every_exit_code_is_documented():
    """The published table is that of the code."""
    assert {int(code): text for code, text in rows("commands", "Exit codes")} == EXIT_CODES


@pytest.mark.parametrize("path", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_commands_that_are_shown_exist(path):
    """Every `altcore ...` on a page is a command with the options that it is shown with."""
    pattern = rf"altcore ((?:{'|'.join(COMMANDS)})\b[^`|#\n]*)"
    for line in re.findall(pattern, path.read_text()):
        name, *rest = line.split()
        command = cli.get_command(None, name)
        if isinstance(command, click.Group) and rest:
            assert rest[0] in command.commands, line
            command = command.commands[rest[0]]
        for option in re.findall(r"--[a-z-]+", line):
            assert option in options_of(command) | {"--help", "--debug", "--log-json"}, line


def anchors(path):
    """Return the anchors of a page's headings, as GitHub makes them."""
    heads = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in heads}


@pytest.mark.parametrize("path", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(path):
    """To a file of the repository, and to a heading that it has."""
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)", path.read_text()):
        found = path.parent / target if target else path
        assert found.exists(), target
        assert not anchor or anchor in anchors(found), f"{target}#{anchor}"


@pytest.mark.parametrize("path", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_tests_that_a_page_names_exist(path):
    """A file of tests is written with its folder."""
    for name in re.findall(r"`(tests/[\w/]+\.py)", path.read_text()):
        assert (ROOT / name).is_file(), name


def test_the_index_lists_every_page():
    """docs/README.md leads to each page, and to the results."""
    targets = set(re.findall(r"\]\(([^)#]+)", page("README")))
    assert {p.name for p in DOCS} - {"README.md"} <= targets
    assert "results/README.md" in targets
    assert "(docs/README.md)" in (ROOT / "README.md").read_text()


# ------------------------------------------------------------------------- CONTRIBUTING.md


def layers():
    """Return the rooms of altcore, highest first, each line a list: import-linter's contract."""
    about = tomllib.loads((ROOT / "pyproject.toml").read_text())
    (found,) = [
        c["layers"] for c in about["tool"]["importlinter"]["contracts"] if c["type"] == "layers"
    ]
    return [re.split(r" [|:] ", line) for line in found]


def test_the_map_of_the_rooms_is_the_linters():
    """The same rooms in the same order, each with a sentence; and they are all there are."""
    found = rows_of(CONTRIBUTING, "The rooms")[: len(layers())]
    assert [plain(names).split(", ") for names, _ in found] == layers()
    assert all(about for _, about in found)
    there = {p.stem for p in (ROOT / "altcore").glob("*.py") if not p.stem.startswith("__")}
    there |= {p.parent.name for p in (ROOT / "altcore").glob("*/__init__.py")}
    assert {room for line in layers() for room in line} == there


@pytest.mark.parametrize("path", ["README.md", "docs/tutorial.md"])
def test_all_distributions_are_in_the_command_that_installs(path):
    """Whoever follows the page can follow every other one."""
    kinds = {p.parent.name for p in (ROOT / "plugins").glob("*/pyproject.toml")}
    assert set(re.findall(r"\./plugins/(\w+)", (ROOT / path).read_text())) >= kinds


def test_the_tests_mirror_the_rooms():
    """Each room that is a package has a folder of tests, each kind of plugins too, and no other."""
    rooms = {p.parent.name for p in (ROOT / "altcore").glob("*/__init__.py")}
    kinds = {p.parent.name for p in (ROOT / "plugins").glob("*/pyproject.toml")}

    def folders(path):
        return {p.parent.name for p in path.glob("*/test_*.py")}

    assert folders(ROOT / "tests") == rooms
    assert folders(ROOT / "tests" / "plugins") == kinds


def test_files_that_are_named_exist():
    """The table of where to look; a name beside a file is in it."""
    found = rows_of(CONTRIBUTING, "The rooms")[len(layers()) :]
    assert len(found) == 7
    for _, where in found:
        paths = re.findall(r"`(altcore/[\w/.]+)`", where)
        assert paths
        for path in paths:
            assert (ROOT / path).is_file(), path
        for name in re.findall(r"`(\w+)\.(\w+)`", where):
            text = (ROOT / paths[0]).read_text()
            assert re.search(rf"class {name[0]}\b.*def {name[1]}\(", text, re.DOTALL), name


# ------------------------------------------------------------------------------ formats.md


def number(text):
    """Return what a cell such as ``1.5 · 2^32`` means."""
    factor, _, power = text.rpartition(" · ")
    base, caret, exponent = power.partition("^")
    return float(factor or 1) * (float(base) ** float(exponent) if caret else float(base))


def test_every_first_party_format_is_documented():
    """Each name, and each family by its pattern."""
    for entry in (e for e in FIRST_PARTY if e.kind == "format"):
        name = re.escape(f"`{entry.name}`" if entry.is_family else entry.name)
        assert re.search(rf"(?<![\w-]){name}(?![\w-])", page("formats")), entry.name


def test_the_figures_of_formats_are_right():
    """The table's largest and smallest values are those of the formats."""
    found = [r for r in rows("formats", "What a name means") if len(r) == 4]
    assert len(found) > 8
    for names, _, largest, smallest in found:
        for name, most, least in zip(
            *(c.split(", ") for c in (names, largest, smallest)), strict=True
        ):
            fmt = get_format(name)
            assert number(most) == pytest.approx(fmt.max, rel=2e-3), name
            assert number(least) == fmt.smallest, name


def test_public_names_are_documented():
    """Everything that ``altcore`` exports is shown somewhere in docs/."""
    text = "".join(path.read_text() for path in DOCS)
    for name in altcore.__all__:
        assert re.search(rf"\b{name}\b", text), name


def test_recipes_are_documented():
    """Roles, operands, selectors, scalings, roundings, overflow rules and named recipes."""
    text = page("recipes")
    products = [o for o in OPERANDS if "@" in o]
    keys = (*CAST_KEYS, *STRAIGHT_THROUGH)
    for word in (*ROLES, *products, *SELECTORS, *SCALINGS, *NAMED, *keys):
        assert f"`{word}`" in text, word
    assert "`power-of-two`" in text
    text = page("formats")
    for word in (*ROUNDINGS, *OVERFLOWS):
        assert f"`{word}`" in text, word
    readme = (ROOT / "README.md").read_text()
    assert all(f"`{name}`" in readme for name in NAMED)


# ----------------------------------------------------------------------------- analysis.md


def test_the_state_of_every_status_is_documented():
    """As frames and W&B have it."""
    from altcore_reporters.original_names import STATES

    assert {plain(r[0]): plain(r[1]) for r in rows("analysis", "States")} == STATES


def test_the_columns_of_the_loader_are_documented():
    """In their order."""
    from altcore_reporters.loader import FORMAT_COLUMNS, MANIFOLD_COLUMNS

    found = [tuple(plain(r[2]).split(", ")) for r in rows("analysis", "Read runs")]
    assert found[:2] == [FORMAT_COLUMNS, MANIFOLD_COLUMNS]


def methods_of(cls):
    """Return the public methods of a class, and their parameters as they are called."""
    found = inspect.getmembers(cls, inspect.isfunction)
    return {n: list(parameters_of(f))[1:] for n, f in found if not n.startswith("_")}


@pytest.mark.parametrize(
    ("name", "on", "heading"),
    [
        ("FormatComparator", "analysis", "Compare formats"),
        ("FailureAnalyzer", "analysis", "Find out why runs failed"),
        ("ExportedStudy", "loss-slope", "In a notebook"),
    ],
)
def test_the_methods_of_the_analysis_are_documented(name, on, heading):
    """With their parameters, each with what it returns."""
    import altcore_reporters

    found = [r for r in rows(on, heading) if "(" in r[0]]
    shown = {plain(r[0]).partition("(")[0]: re.findall(r"[(,] ?(\w+)", r[0]) for r in found}
    assert shown == methods_of(getattr(altcore_reporters, name))
    assert all(r[1] for r in found)


def test_every_failure_mode_is_documented():
    """With what it is known by: measurements, a reason, or nothing."""
    from altcore_reporters.failure_evidence import MODES

    found = [r for r in rows("analysis", "Find out why runs failed") if "(" not in r[0]]
    assert {plain(r[0]) for r in found} == set(MODES)
    assert all(r[1] or r[2] for r in found)


def test_the_reports_of_the_analysis_are_documented():
    """Each with the file that it writes."""
    from altcore_reporters.analysis import FailureModes, FormatComparison, ManifoldComparison

    made = {e.load(): e.name for e in FIRST_PARTY if e.kind == "reporter"}
    known = [made.get(c) for c in (FormatComparison, FailureModes, ManifoldComparison)]
    found = {plain(r[0]): plain(r[1]) for r in rows("analysis", "Reports")}
    assert found == {name: f"{name.replace('-', '_')}.md" for name in known}


# ------------------------------------------------------------------------- plugins.md, and all


def test_every_kind_is_documented():
    """With its entry-point group."""
    found = rows("plugins", "Write a plugin", "#")[: len(KINDS)]
    assert [[r[0], plain(r[1])] for r in found] == [[k, group_of(k)] for k in KINDS]


def blocks(language):
    """Return the code blocks of a language: (page, comment above, code)."""
    pattern = rf"(?:<!-- ([^>]*) -->\n)?```{language}\n(.*?)```"
    return [
        (path.stem, comment, code)
        for path in DOCS
        for comment, code in re.findall(pattern, path.read_text(), re.DOTALL)
    ]


PYTHON = [b for b in blocks("python") if b[0] != "tutorial" or b[1].startswith("entry point")]
"""Those of the tutorial that are no plugins are run by test_tutorial."""
PLUGINS = [
    (*comment.removeprefix("entry point: ").replace(" = ", " ").split(), code)
    for _, comment, code in PYTHON
    if comment.startswith("entry point: ")
]
"""(kind, name, attribute, code) of the plugins that the pages show."""


@pytest.fixture
def shown_plugins(tmp_path, monkeypatch):
    """The plugins that the pages show, installed."""
    site = tmp_path / "site"
    for kind, name, attribute, code in PLUGINS:
        module = f"documented_{name.replace('-', '_')}"
        points = {kind: {name: f"{module}:{attribute}"}}
        distribution(site, f"documented-{name}", points, **{module: code})
    monkeypatch.syspath_prepend(str(site))
    forget_installed()
    yield
    forget_installed()


def test_a_plugin_of_every_kind_is_shown():
    """plugins.md has a complete one of each."""
    assert {kind for kind, *_ in PLUGINS} == set(KINDS)


def place_with(executor, folder):
    """Let an executor place workers that do nothing, of a sweep with a job that is then done."""
    left, told = [1, 0], []
    placing = Placing(
        folder=folder,
        command=(sys.executable, "-c", "pass"),
        work=lambda: 0,
        left=lambda: left.pop(0),
        attempts=lambda: 0,
        tell=told.append,
    )
    executor.run(placing)
    assert (left, told) == ([], ["worker 1"])


@pytest.mark.parametrize(
    ("kind", "name"), [p[:2] for p in PLUGINS], ids=[f"{p[0]} {p[1]}" for p in PLUGINS]
)
def test_a_plugin_that_is_shown_works(kind, name, shown_plugins, tmp_path, corpus, capsys):
    """It loads, has its place in the list, and a run can use it."""
    about = call(capsys, "plugins", "info", name, "--kind", kind, "--json")
    assert about.code == 0, about.err
    if kind == "executor":
        place_with(find(name, (kind,)).load()(), tmp_path)
        return
    start = Starter(tmp_path / "runs", corpus, {"warmup_steps": 0})
    if kind in ("format", "optimizer", "workload"):
        result = start(**{"format": "E4M3", kind: name})
    elif kind == "intervention":
        result = start([name], format="E3M4", learning_rate=1e30, max_steps=8)
        assert result.format_shifted_to == "E5M2"
    else:
        result = start([name])
    assert result.status == "finished"
    assert not result.summary["degraded"]
    if kind == "reporter":
        (report,) = result.summary["reports"]
        lines = (result.run_directory / report).read_text().splitlines()
        assert len(lines) in (3, 4)  # one a step, perhaps below a head


def test_a_log_that_is_shown_has_no_line_twice(shown_plugins, tmp_path, corpus):
    """Its run is killed after steps 3 and 4, and goes on from step 2."""
    start = Starter(tmp_path / "runs", corpus, {"max_steps": 4, "checkpoint_interval": 2})
    whole = start(["loss-log"], name="whole").run_directory / "reports/loss.log"
    code = forked(lambda: start(["loss-log"], name="killed"), "rename step-00000004")
    log = start.runs / "killed/reports/loss.log"
    assert code == -signal.SIGKILL
    assert log.read_bytes().startswith(whole.read_bytes()[:-1])
    start.resume("killed")
    assert log.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize(
    ("name", "comment", "code"),
    [b for b in PYTHON if not b[1].startswith("entry point: ")],
    ids=lambda x: x if len(x) < 40 else "code",
)
def test_code_that_is_shown_runs(name, comment, code, shown_plugins, tmp_path, monkeypatch):
    """As it stands there; tests among it are called."""
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "documented"}
    exec(compile(code, f"docs/{name}.md", "exec"), namespace)
    for thing, found in list(namespace.items()):
        if thing.startswith("test_"):
            found(tmp_path)


YAML = [b for b in blocks("yaml") if b[0] != "tutorial"]  # test_tutorial gives its files to runs


@pytest.mark.parametrize(("name", "_", "text"), YAML, ids=lambda x: x[:20].strip())
def test_yaml_that_is_shown_is_valid(name, _, text, tmp_path):
    """A configuration loads; a recipe parses; a format is one; a sweep has jobs."""
    if name == "formats":
        (tmp_path / "shown.yaml").write_text(text)
        assert get_format(tmp_path / "shown.yaml").name == yaml.safe_load(text)["name"]
    elif name == "sweeps":
        (tmp_path / "shown.yaml").write_text(text)
        jobs = jobs_of(read_sweep(tmp_path / "shown.yaml"))
        assert len(jobs) == (12 if "grid" in text else 1)
    elif name == "loss-slope":
        (tmp_path / "experiments").symlink_to(ROOT / "experiments")
        (tmp_path / "shown.yaml").write_text(text)
        asked = read_sweep(tmp_path / "shown.yaml")
        assert (asked.name, len(jobs_of(asked))) == ("loss-slope", 216)
    elif name == "recipes":
        assert read_recipe(load_yaml(text, Source(name))).rules
    else:
        (tmp_path / "shown.yaml").write_text(text)
        assert load_config(tmp_path / "shown.yaml") != load_config()


def test_files_in_the_readme_are_valid():
    """The blocks that begin with a file's name: a recipe and a format."""
    readme = (ROOT / "README.md").read_text()
    found = re.findall(r"^    # \w+\.yaml\n((?:    .*\n)+)", readme, re.MULTILINE)
    recipe, fmt = [yaml.safe_load(re.sub("^    ", "", x, flags=re.MULTILINE)) for x in found]
    assert read_recipe(recipe).rules
    assert get_format(fmt).name == "MINE"


def test_toml_that_is_shown_is_valid():
    """Its groups are groups of altcore's."""
    for _, _, text in blocks("toml"):
        groups = tomllib.loads(text)["project"]["entry-points"]
        assert set(groups) <= {group_of(k) for k in KINDS}


def test_public_names_are_what_pages_import():
    """Only what altcore exports, and what modules have that plugins.md or sweeps.md document."""
    for _, _, code in PYTHON:
        for module, names in re.findall(r"^from (altcore[\w.]*) import (.*)$", code, re.MULTILINE):
            if module == "altcore":
                assert set(names.split(", ")) <= set(altcore.__all__)
            else:
                assert f"`{module}`" in page("plugins") + page("sweeps")


def test_the_functions_of_sweeps_are_documented():
    """With their parameters and defaults."""

    def told(p):
        default = getattr(p.default, "__name__", repr(p.default)).replace("'", '"')
        return p.name if p.default is p.empty else f"{p.name}={default}"

    for row in rows("sweeps", "From Python"):
        name, _, given = plain(row[0]).partition("(")
        parameters = inspect.signature(getattr(altcore.sweep, name)).parameters.values()
        known = ", ".join(map(told, parameters))
        assert given == f"{known})"


# ----------------------------------------------------------------------------------- trackers


def test_every_alert_is_documented():
    """With its level, and the seconds until it comes again."""
    original = {"original": "fp8", "bit_stall_threshold": 0.5}
    alerts = Alerts(original, now=itertools.count(step=1e3).__next__)
    made = [
        alerts.of_event({"step": 1, "event": "collapse", "cause": cause, "reason": ""})
        for cause in ("nan_patience", "CAUSE")
    ]
    made += [
        alerts.of_event({"step": 1, "event": "warning", "cause": "overflow", "message": ""}),
        alerts.of_line({"step": 1, "stored_stall_rate": 0.9}),
    ]
    waits = [f"{alert.wait:g} s" if alert.wait else "at once" for alert in made]
    expected = [[a.title, a.level, wait] for a, wait in zip(made, waits, strict=True)]
    found = rows("trackers", "Alerts")
    assert [[plain(row[0]), row[1], row[3]] for row in found] == expected


def test_every_method_of_a_tracker_is_documented():
    """With its arguments, in the order of the calls."""
    methods = ("start", "log", "event", "alert", "finish", "abandon", "holds")
    taken = {name: [*parameters_of(getattr(TrackerReporter, name))][1:] for name in methods}
    expected = [f"{name}({', '.join(names)})" for name, names in taken.items()]
    assert [plain(row[0]) for row in rows("trackers", "A tracker of your own")] == expected


# ------------------------------------------------------------------------------------- faults


def test_the_table_of_faults_counts_its_tests():
    """Each row's test exists, and makes at least as many faults as the row says."""
    rows = rows_of((ROOT / "docs/faults.md").read_text(), "The table")
    assert len(rows) == 32
    files = sorted({plain(row[1]).partition("::")[0] for row in rows})
    counting = [sys.executable, str(ROOT / "tests/fault_counts.py"), *files]
    done = subprocess.run(counting, cwd=ROOT, capture_output=True, text=True, check=True)
    counts = json.loads(done.stdout.splitlines()[-1])
    for _, test, few, many, _ in rows:
        name = plain(test)
        found = counts[name]
        assert found[0] >= int(few), name
        if many == "all":
            file = name.partition("::")[0]
            assert any(n.startswith(file) and c[0] == 0 < c[1] for n, c in counts.items()), name
        else:
            assert found[1] >= int(many), name
