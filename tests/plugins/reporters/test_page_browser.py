"""The page in a real Chromium: drawn, sorted, zoomed, by keyboard, on a phone and on paper."""

import shutil
from contextlib import contextmanager

import pytest
from helpers_pages import losses, run
from helpers_studies import compare_answer

from altcore_reporters.page.reporter import html_of
from altcore_reporters.study_pages.comparison import comparison
from altcore_reporters.study_pages.html_page import as_html

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)

LONG_NAME = "E4M3/stored_weight=stochastic"
"""Of an arm."""

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no browser: install chromium or google-chrome"),
    # One browser for all: xdist may give a group to one worker.
    pytest.mark.xdist_group("browser"),
]


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    with playwright.sync_playwright() as started:
        found = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The page of one run with everything on it, and that of nine runs."""
    folder = tmp_path_factory.mktemp("pages")
    layers = {
        f"{m}/h.{i}.mlp": i / 9
        for m in ("bit-stall/stored_stall_share", "shadow/injected")
        for i in range(9)
    }
    key = "value-histogram/activation@fwd_E4M3"
    values = {f"{key}_histogram": [0.1, 0.0, *[0.01] * 90, 0.0], f"{key}_low": -40}
    lines = losses(200)
    for line in lines[::20]:
        line |= layers | values
    collapse = {"step": 20, "event": "collapse", "cause": "diverged", "reason": "it diverged"}
    one = run(
        "E7M0",
        metrics=lines,
        events=[collapse],
        environment={"python": "3.11", "libraries": {"torch": "2"}},
    )
    nine = [
        run(f, s, 200, low=low)
        for f, low in (("E4M3", 2.0), ("E5M2", 2.5), ("E7M0", 4.0))
        for s in (1, 2, 3)
    ]
    for name, records in (("one", [one]), ("nine", nine)):
        (folder / f"{name}.html").write_text(html_of(records))
    answer = compare_answer()
    answer["contenders"][1]["arm"] = LONG_NAME
    (folder / "study.html").write_text(as_html(comparison(answer)))
    return folder


@contextmanager
def opened(browser, path, **context):
    """Open a page; fails if it says anything on the console, or asks for anything but itself."""
    own = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **context})
    page, said, asked = own.new_page(), [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(f"file://{path}")
    yield page
    own.close()
    assert said == []
    assert [url for url in asked if not url.startswith("data:")] == [f"file://{path}"]


def overflow(page):
    """By how much the page is wider than the window."""
    return page.evaluate("document.documentElement.scrollWidth - innerWidth")


@pytest.mark.parametrize("name", ["one", "nine"])
@pytest.mark.parametrize("width", [1280, 360])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_draws_at_every_width_and_in_the_dark(browser, files, name, width, scheme):
    context = {"viewport": {"width": width, "height": 700}, "color_scheme": scheme}
    with opened(browser, files / f"{name}.html", **context) as page:
        assert overflow(page) <= 0
        light = page.evaluate("getComputedStyle(document.body).backgroundColor").split("(")[1]
        assert (int(light.split(",")[0]) > 200) == (scheme == "light")
        boxes = page.eval_on_selector_all(
            ".plot .line:not(.raw)", "all => all.map(e => e.getBoundingClientRect().width)"
        )
        assert len(boxes) >= 4
        assert min(boxes) > 0.3 * width
        marks = page.locator(".mark")
        if name == "one":
            box, plot = marks.bounding_box(), page.locator("#loss .plot").bounding_box()
            at = (box["x"] + box["width"] / 2 - plot["x"]) / plot["width"]
            assert at == pytest.approx(19 / 199, abs=0.01)


def column(page, number):
    cells = page.locator("section[aria-labelledby=runs] tbody tr")
    return [row.locator("th, td").nth(number).inner_text() for row in cells.all()]


def test_no_column_is_cut_off_on_a_screen_or_on_paper(browser, files):
    """What is too wide for a phone scrolls by keyboard."""
    wide = "document.querySelector('[aria-labelledby=runs] .scroll')"
    with opened(browser, files / "nine.html") as page:
        for media, width in (("screen", 1280), ("print", 690), ("screen", 360)):
            page.emulate_media(media=media)
            page.set_viewport_size({"width": width, "height": 700})
            beyond = page.evaluate(f"{wide}.scrollWidth - {wide}.clientWidth")
            assert (beyond > 0) == (width == 360)
        page.wait_for_function(f"{wide}.tabIndex === 0")


def test_tables_sort_by_mouse_and_by_keyboard(browser, files):
    with opened(browser, files / "nine.html") as page:
        before = column(page, 5)
        assert before == sorted(before, key=float)
        heading = page.locator("section[aria-labelledby=runs] th", has_text="validation loss")
        heading.locator("button").focus()
        page.keyboard.press("Enter")
        assert heading.get_attribute("aria-sort") == "ascending"
        page.keyboard.press("Enter")
        assert heading.get_attribute("aria-sort") == "descending"
        assert column(page, 5) == sorted(before, key=float, reverse=True)
        page.locator("section[aria-labelledby=runs] th button", has_text="configuration").click()
        assert column(page, 0) == sorted(column(page, 0))
        assert heading.get_attribute("aria-sort") is None


def test_a_curve_is_read_by_keyboard(browser, files):
    """The readout is live, for screen readers; what it says is what was recorded."""
    with opened(browser, files / "one.html") as page:
        readout = page.locator(".readout")
        assert readout.get_attribute("aria-live") == "polite"
        page.locator("#stored_stall_rate .plot").focus()
        page.keyboard.press("End")
        assert readout.inner_text().splitlines() == ["step 200", "E7M0: 100 %"]
        page.keyboard.press("Home")
        assert readout.inner_text().splitlines() == ["step 1", "E7M0: 50.2 %"]
        page.keyboard.press("Shift+ArrowRight")
        assert readout.inner_text().startswith("step 21\n")
        page.keyboard.press("Escape")
        assert readout.is_hidden()


def test_all_plots_zoom_together_and_back(browser, files):
    with opened(browser, files / "one.html") as page:
        page.locator("#loss .plot").focus()
        page.keyboard.press("Home")
        page.keyboard.press("+")
        boxes = page.eval_on_selector_all(
            ".plot > svg", "all => all.map(e => e.getAttribute('viewBox'))"
        )
        assert len(set(boxes)) == 1
        assert boxes[0] != "0 0 2000 400"
        back = page.get_by_role("button", name="All steps")
        back.click()
        assert page.locator(".plot > svg").first.get_attribute("viewBox") == "0 0 2000 400"
        box = page.locator("#loss .plot").bounding_box()
        page.mouse.move(box["x"] + 0.5 * box["width"], box["y"] + 50)
        page.mouse.down()
        page.mouse.move(box["x"] + 0.75 * box["width"], box["y"] + 50, steps=3)
        page.mouse.up()
        ticks = [int(t) for t in page.locator("#loss .plot .x").all_inner_texts()]
        assert ticks
        assert min(ticks) >= 99
        assert max(ticks) <= 152
        assert page.locator(".mark").is_hidden()
        page.keyboard.press("Escape")
        assert page.locator(".mark").is_visible()


def test_pointing_at_a_configuration_lights_it_up(browser, files):
    with opened(browser, files / "nine.html") as page:
        item = page.locator(".legend button", has_text="E5M2")
        item.click()
        assert item.get_attribute("aria-pressed") == "true"
        lit = page.eval_on_selector_all(".plots .lit", "all => all.map(e => e.dataset.g)")
        assert set(lit) == {"1"}
        item.click()
        page.mouse.move(5, 5)
        assert page.locator(".plots .lit").count() == 0


def test_the_table_behind_a_picture_is_there_for_readers_and_shown_on_demand(browser, files):
    with opened(browser, files / "one.html") as page:
        seen = page.locator("main").aria_snapshot()
        assert 'table "Loss"' in seen
        assert 'img "Loss over steps.' in seen
        behind = page.locator("#loss-table")
        assert behind.bounding_box()["width"] <= 1
        page.locator("#loss .toggle input").focus()
        page.keyboard.press("Space")
        assert behind.bounding_box()["width"] > 200
        assert "step 200" in behind.inner_text()


def test_it_is_complete_without_javascript(browser, files):
    with opened(browser, files / "nine.html", java_script_enabled=False) as page:
        text = page.locator("body").inner_text()
        for part in ("6 of 9 runs learned", "Validation loss", "Configurations", "Provenance"):
            assert part in text
        assert page.locator("button").count() == 0
        assert page.locator(".plot .line").first.bounding_box()["width"] > 300
        page.locator("#loss .toggle").click()
        assert page.locator("#loss-table").bounding_box()["width"] > 200


def test_it_prints_light(browser, files):
    with opened(browser, files / "one.html", color_scheme="dark") as page:
        assert page.pdf(format="A4", print_background=True).startswith(b"%PDF")
        page.emulate_media(media="print")
        assert (
            page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        )
        assert page.locator(".toggle").first.is_hidden()
        assert page.locator("details table").is_visible()  # nobody opens it on paper


@pytest.mark.slow
def test_216_runs_are_small_and_open_at_once(browser, tmp_path):
    """At most 3 MB, and open in under 2 s."""
    lines = losses(500)
    records = [
        run(f"E{e}M{m}", seed, metrics=lines, name=f"E{e}M{m}-{rate}-s{seed}", config={"lr": rate})
        for e, m in ((2, 5), (3, 4), (4, 3), (5, 2))
        for rate in range(18)
        for seed in range(3)
    ]  # fmt: skip
    path = tmp_path / "many.html"
    path.write_text(html_of(records))
    assert path.stat().st_size < 3e6
    own = browser.new_context()
    page = own.new_page()
    client = own.new_cdp_session(page)
    # Of the page's own thread: other processes take time as well.
    client.send("Performance.enable", {"timeDomain": "threadTicks"})
    page.goto(f"file://{path}")
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => setTimeout(done)))")
    found = {m["name"]: m["value"] for m in client.send("Performance.getMetrics")["metrics"]}
    assert 0 < found["TaskDuration"] < 2
    assert page.locator("#loss .line").count() == 216
    own.close()


# -------------------------------------------------------------------------- a page on a study


def test_a_study_has_room_on_a_phone_and_on_a_screen(browser, files):
    """No table of it is cut at 1280 pixels; at 400, names break between their parts alone."""
    with opened(browser, files / "study.html") as page:
        scrolls = (
            "[...document.querySelectorAll('.scroll')].map(e => e.scrollWidth - e.clientWidth)"
        )
        assert overflow(page) <= 0
        assert max(page.evaluate(scrolls)) <= 0
    with opened(browser, files / "study.html", viewport={"width": 400, "height": 800}) as page:
        assert overflow(page) <= 0
        names = page.locator("th", has_text=LONG_NAME)
        assert names.count() > 3
        for name in names.all():
            lines = [line.strip() for line in name.inner_text().split("\n")]
            assert lines == [LONG_NAME]
        widths = "e => [...e.childNodes].map(n => { const r = document.createRange(); "
        widths += "r.selectNodeContents(n); return r.getClientRects().length; })"
        for name in names.all():
            assert set(name.evaluate(widths)) <= {0, 1}
