"""What a plugin may not change is put back, and its name is told."""

import ctypes
import platform
import signal
from contextlib import contextmanager

import pytest
import torch
from attrs import define
from helpers import events, tracer, weights_sha256
from helpers_plugins import make

from altcore import hookimpl
from altcore.errors import PluginError


def replaced(self, step):
    """Replace the loss, if there is one."""
    if step.loss is not None:
        step.loss = step.loss * 2


def doubled(self, step):
    """Double the loss in place."""
    if step.loss is not None:
        with torch.no_grad():
            step.loss *= 2


def scaled(self, step):
    """Change the loss scale."""
    step.loss_scale = 8.0


def replaced_and_raised(self, step):
    """Replace the loss and fail."""
    step.loss = step.loss * 2
    raise ValueError("no")


def watched(change, when):
    """A plugin that changes the loss as it enters or leaves a watch."""

    @define(eq=False)
    class Watches:
        @hookimpl
        @contextmanager
        def watch_forward(self, step):
            if when == "enters":
                change(self, step)
            yield
            if when == "leaves":
                change(self, step)

        watch_backward = watch_forward

    return Watches


LOSSES = [
    *(make({hook: f}) for hook in ("pre_backward", "post_backward", "pre_step", "post_step")
      for f in (replaced, doubled, scaled)),
    make({"pre_backward": replaced_and_raised}),
    *(watched(f, when) for when in ("enters", "leaves") for f in (replaced, doubled)),
]  # fmt: skip


@pytest.fixture(scope="module")
def plain():
    """The losses of runs that nobody touches, by their keys."""
    return {}


@pytest.mark.parametrize("cls", LOSSES)
def test_who_only_looks_changes_no_loss(shelf, start, plain, cls):
    """Neither by another tensor nor in place: the plugin is disabled, the numbers stay."""
    keys = {"max_steps": 2, "log_interval": 1, "gradient_accumulation_steps": 2}
    if not plain:
        plain["loss"] = [x["loss"] for x in start(name="plain", **keys).metrics_history]
    shelf.install("diagnostic", "sly", cls)
    result = start(["sly"], **keys)
    assert [x["loss"] for x in result.metrics_history] == plain["loss"]
    assert result.summary["degraded"] == ["sly"]


def test_an_intervention_changes_the_loss_in_pre_backward_only(shelf, start):
    """There it counts; elsewhere the run ends with its name."""
    shelf.install("intervention", "early", make({"pre_backward": replaced}))
    assert start(["early"], max_steps=1).status == "finished"
    shelf.install("intervention", "late", make({"post_backward": replaced}))
    with pytest.raises(PluginError, match=r"intervention late .*post_backward of an intervention"):
        start(["late"], name="late", max_steps=1)


def switch_off(self):
    """Leave a mode behind."""
    torch.set_grad_enabled(False)


def change_dtype(self):
    """Leave another default dtype behind."""
    torch.set_default_dtype(torch.float64)


def entering(context):
    """A plugin whose watches are within another context."""

    @define(eq=False)
    class Enters:
        @hookimpl
        @contextmanager
        def watch_forward(self, run):
            with context():
                yield

        watch_backward = watch_forward

    return Enters


MODES = [
    (entering(torch.no_grad), "grad mode"),
    (entering(torch.inference_mode), "grad mode and inference mode"),
    (entering(lambda: torch.autocast("cpu", torch.bfloat16)), "autocast"),
    (make({"run_start": switch_off}), "grad mode"),
    (make({"post_step": change_dtype}), "the default dtype"),
]


@pytest.mark.parametrize(("cls", "which"), MODES)
def test_a_mode_of_torch_is_put_back(shelf, start, cls, which):
    """The plugin is disabled by name, and the model runs as it would without it."""
    shelf.install("diagnostic", "moody", cls)
    result = start(["moody"], max_steps=2)
    assert result.status == "finished"
    (said,) = events(result.run_directory, "degraded")
    assert f"it may not change {which} of torch" in said["message"]
    assert torch.get_default_dtype() is torch.float32


# ---------------------------------------------------------------------- reports and events


@pytest.mark.parametrize("path", ["reports/none.md", 5, "../../x", "/etc/hostname"])
def test_a_report_that_is_not_there_is_the_reporters_failure(shelf, start, path):
    """The Result and the summary name files only."""

    @define(eq=False)
    class Reports:
        @hookimpl
        def run_end(self, run):
            run.reports.append(path)

    shelf.install("reporter", "airy", Reports)
    result = start(["airy"], max_steps=1)
    assert result.summary["reports"] == []
    (said,) = events(result.run_directory, "degraded")
    assert "reporter airy" in said["message"]
    assert f"run.reports: {path!r} is no path of a file" in said["message"]


def replaces(name):
    """A function that takes a list of the run away."""

    def body(run):
        setattr(run, name, None)

    return body


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (replaces("reports"), "run.reports cannot be replaced by None"),
        (replaces("degraded"), "run.degraded cannot be replaced by None"),
        (replaces("shifts"), "run.shifts cannot be replaced by None"),
        (lambda run: run.reports.clear(), "it may only append to run.reports"),
        (lambda run: run.reports.insert(0, 5), "it may only append to run.reports"),
    ],
)
def test_the_runs_lists_are_not_a_plugins_to_replace(shelf, start, spoil, says):
    """Who did it is told, nobody else is blamed, and the reports of others stay."""

    @define(eq=False)
    class Reports:
        @hookimpl
        def run_end(self, run):
            (run.directory / "reports" / "a.md").write_text("x")
            run.reports.append("reports/a.md")

    @define(eq=False)
    class Spoils:
        @hookimpl
        def run_end(self, run):
            spoil(run)

    shelf.install("reporter", "good", Reports)
    shelf.install("reporter", "sly", Spoils)
    shelf.install("reporter", "last", tracer([]))
    result = start(["good", "sly", "last"], max_steps=1)
    assert result.summary["reports"] == ["reports/a.md"]
    assert result.summary["degraded"] == ["sly"]
    (said,) = events(result.run_directory, "degraded")
    assert says in said["message"]


@pytest.mark.parametrize("key", ["step", "event"])
def test_an_event_cannot_replace_the_keys_of_its_line(shelf, start, key):
    """The line would say that it is another one."""

    @define(eq=False)
    class Emits:
        @hookimpl
        def post_step(self, run):
            run.emit("mine", **{key: 5})

    shelf.install("diagnostic", "emits", Emits)
    result = start(["emits"], max_steps=1)
    (said,) = events(result.run_directory, "degraded")
    assert f"the event 'mine' cannot hold {key!r}" in said["message"]
    assert not events(result.run_directory, "mine")


def test_the_kind_of_an_event_is_a_line_of_text(shelf, start):
    """Nobody could ask for it by another."""
    said = []

    @define(eq=False)
    class Emits:
        @hookimpl
        def post_step(self, run):
            for kind in ("", " ", "a\nb", 3, None):
                with pytest.raises(PluginError) as caught:
                    run.emit(kind)
                said.append(str(caught.value))
            run.emit("own/kind of mine")

    shelf.install("diagnostic", "emits", Emits)
    result = start(["emits"], max_steps=1)
    assert [line.partition(": ")[2] for line in said] == ["it has to be a line of text"] * 5
    assert events(result.run_directory, "degraded") == []
    assert len(events(result.run_directory, "own/kind of mine")) == 1


UPWARD = {"x86_64": 0x800, "aarch64": 0x400000, "arm64": 0x400000}
"""FE_UPWARD of C, by processor."""


@pytest.mark.skipif(platform.machine() not in UPWARD, reason="its numbers are not known here")
@pytest.mark.parametrize("kind", ["reporter", "intervention"])
def test_the_processors_rounding_mode_is_put_back(shelf, start, kind):
    """No option of torch tells of it, and every product depends on it."""

    def round_up(self, step):
        ctypes.CDLL(None).fesetround(UPWARD[platform.machine()])

    shelf.install(kind, "rounds", make({"post_step": round_up}))
    text = "it may not change the processor's rounding mode"
    if kind == "intervention":
        with pytest.raises(PluginError, match=text):
            start(["rounds"])
    else:
        result, plain = start(["rounds"]), start()
        assert events(result.run_directory, "degraded")[0]["message"].endswith(text)
        assert weights_sha256(result.run_directory) == weights_sha256(plain.run_directory)
    one, little = torch.tensor(1.0), torch.tensor(2.0**-26)
    assert one + little == one - little == one


@pytest.mark.parametrize("kind", ["reporter", "intervention"])
def test_a_handler_of_signals_is_put_back(kind, shelf, start):
    """Whoever sets it, and in any call: a signal would end the run without a checkpoint."""

    def post_step(self, step):
        if step.index == 2:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)

    before = signal.getsignal(signal.SIGTERM)
    shelf.install(kind, "deaf", make({"post_step": post_step}))
    told = "it may not change the handler of SIGTERM"
    if kind == "intervention":
        with pytest.raises(PluginError, match=told):
            start(["deaf"])
    else:
        (event,) = events(start(["deaf"]).run_directory, "degraded")
        assert event["message"].endswith(told)
    assert signal.getsignal(signal.SIGTERM) == before
