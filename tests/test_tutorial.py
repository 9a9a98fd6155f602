"""docs/tutorial.md: every file in it is written, every command is run, and prints what it shows.

A line of ``...`` stands for any lines, and ``...`` within a line for any text. Numbers with a
decimal point may differ a little, since the text that is learned comes with Python.
"""

import re

import pytest
from helpers import forget_installed
from helpers_cli import ROOT, call, distribution

PAGE = (ROOT / "docs" / "tutorial.md").read_text()
BLOCK = re.compile(r"(?:<!-- ([^>]*) -->\n)?```(\w+)\n(.*?)```", re.DOTALL)
DECIMAL = re.compile(r"-?\d+\.\d+")
RELATIVE, ABSOLUTE = 0.1, 0.005
SLOW = ("Explain",)  # five minutes


def sections():
    """Return the page's sections that show what is printed: heading and blocks."""
    parts = re.split(r"^## (.*)\n", PAGE, flags=re.MULTILINE)[1:]
    found = {h: BLOCK.findall(text) for h, text in zip(parts[::2], parts[1::2], strict=True)}
    return {h: b for h, b in found.items() if any(kind == "console" for _, kind, _ in b)}


def near(shown, printed):
    """Return whether two lines are the same but for ``...`` and decimals that differ a little."""
    numbers = DECIMAL.findall(shown)
    parts = [
        "(-?\\d+\\.\\d+)" if DECIMAL.fullmatch(x) else ".*" if x == "..." else re.escape(x)
        for x in re.split(rf"({DECIMAL.pattern}|\.\.\.)", shown)
    ]
    found = re.fullmatch("".join(parts), printed)
    return found is not None and all(
        abs(float(a) - float(b)) <= max(ABSOLUTE, RELATIVE * abs(float(a)))
        for a, b in zip(numbers, found.groups(), strict=True)
    )


def agrees(shown, printed):
    """Return whether printed lines are those that are shown; a line ``...`` is any of them."""
    if not shown:
        return not printed
    if shown[0] == "...":
        return any(agrees(shown[1:], printed[i:]) for i in range(len(printed) + 1))
    return bool(printed) and near(shown[0], printed[0]) and agrees(shown[1:], printed[1:])


def check(shown, printed):
    shown, printed = shown.strip().splitlines(), printed.strip().splitlines()
    assert agrees(shown, printed), "\n".join(["shown:", *shown, "", "printed:", *printed])


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A folder with every file of the page, and what the page installs on the path."""
    site = tmp_path / "site"
    for about, _, text in BLOCK.findall(PAGE):
        if about.startswith("file: "):
            (tmp_path / about.removeprefix("file: ")).write_text(text)
        elif about.startswith("entry point: "):
            kind, name, attribute = re.split(r" = | ", about.removeprefix("entry point: "))
            module = f"tutorial_{name.lower()}"
            points = {kind: {name: f"{module}:{attribute}"}}
            distribution(site, f"tutorial-{name}", points, **{module: text})
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(site))
    forget_installed()
    yield
    forget_installed()


@pytest.mark.parametrize(
    "heading",
    [pytest.param(h, marks=pytest.mark.slow if h in SLOW else (), id=h) for h in sections()],
)
def test_it_prints_what_the_page_shows(heading, workplace, capsys):
    for about, kind, text in sections()[heading]:
        if kind == "python" and not about:
            capsys.readouterr()
            exec(compile(text, "docs/tutorial.md", "exec"), {})
        elif kind == "console" and not text.startswith("$ "):
            check(text, capsys.readouterr().out)
        elif kind == "console":
            for command in text.removeprefix("$ ").split("\n$ "):
                typed, _, shown = command.partition("\n")
                outcome = call(capsys, *typed.split()[1:])
                assert outcome.code == 0, outcome.err
                check(shown, outcome.out)


@pytest.mark.slow
def test_the_readme_shows_what_its_first_run_prints(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    section = (
        (ROOT / "README.md").read_text().partition("## A first run\n")[2].partition("\n## ")[0]
    )
    command, *shown = [x.rstrip() for x in re.findall(r"^    (.*)$", section, re.MULTILINE)]
    outcome = call(capsys, *command.split()[1:])
    assert outcome.code == 0, outcome.err
    check("\n".join(shown), outcome.out)


def test_every_part_is_tried():
    """The sections of which the tutorial consists, and those whose commands are slow."""
    assert set(SLOW) < set(sections())
    assert list(sections()) == [
        "A first run",
        "What the lines mean",
        "Explain",
        "A recipe of your own",
        "A format of your own",
        "A plugin of your own",
    ]


@pytest.mark.parametrize(
    ("shown", "printed", "same"),
    [
        ("loss 3.2273", "loss 3.2291", True),
        ("loss 3.2273", "loss 4.2291", False),
        ("steps 200", "steps 201", False),
        ("a\n...\nb", "a\nx\ny\nb", True),
        ("a\n...\nb", "a\nx\ny", False),
        ("onset: ...", "onset: step 3", True),
        ("a", "a\nb", False),
    ],
)
def test_how_outputs_are_compared(shown, printed, same):
    assert agrees(shown.splitlines(), printed.splitlines()) is same
