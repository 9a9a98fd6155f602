"""What observers change is found, named and put back."""

import atexit
import gc
import importlib
import io
import os
import random
import resource
import signal
import sys
import threading
import warnings
from contextlib import contextmanager

import numpy
import pytest
import torch
from attrs import define
from helpers import events, metrics_bytes, weights_sha256
from helpers_plugins import make
from structlog.testing import capture_logs
from torch.optim.optimizer import register_optimizer_step_pre_hook

from altcore import hookimpl
from altcore.engine.process_possessions import Stream
from altcore.engine.trespass import TensorValue
from altcore.errors import PluginError
from altcore.registry import entries


def first(run):
    """Name and tensor of a weight."""
    return next(iter(run.model.named_parameters()))


def add_to_weight(run, step):
    with torch.no_grad():
        first(run)[1].add_(1)


def write_data(run, step):
    first(run)[1].data.mul_(2)


def assign_data(run, step):
    p = first(run)[1]
    p.data = p.data * 2


def write_numpy(run, step):
    first(run)[1].detach().numpy()[:] = 3


def load_state(run, step):
    run.model.load_state_dict({k: v * 2 for k, v in run.model.state_dict().items()})


def replace_parameter(run, step):
    run.model.lm_head.weight = torch.nn.Parameter(run.model.lm_head.weight * 2)


def freeze(run, step):
    first(run)[1].requires_grad_(False)


def clear_gradient(run, step):
    first(run)[1].grad = None


def scale_gradient(run, step):
    first(run)[1].grad.mul_(2)


def write_gradient_data(run, step):
    first(run)[1].grad.data.mul_(2)


def add_gradient(run, step):
    p = first(run)[1]
    p.grad = torch.ones_like(p)


def backward_again(run, step):
    run.loss(step.batch).backward()


def evaluate_mode(run, step):
    run.model.eval()


def one_in_eval_mode(run, step):
    run.model.lm_head.eval()


def patch_forward(run, step):
    run.model.lm_head.forward = lambda x: x


def patch_class(run, step):
    type(run.model).forward = lambda self, x: x


def change_eps(run, step):
    next(m for m in run.model.modules() if isinstance(m, torch.nn.LayerNorm)).eps = 0.5


def replace_module(run, step):
    run.model.lm_head = torch.nn.Linear(2, 2)


def add_module(run, step):
    run.model.add_module("more", torch.nn.Linear(2, 2))


def convert_model(run, step):
    run.model.double()


def leave_forward_hook(run, step):
    run.model.register_forward_hook(lambda *_: None)


def leave_pre_hook(run, step):
    run.model.lm_head.register_forward_pre_hook(lambda *_: None)


def leave_backward_hook(run, step):
    run.model.register_full_backward_hook(lambda *_: None)


def leave_tensor_hook(run, step):
    first(run)[1].register_hook(lambda g: g * 2)


def leave_accumulation_hook(run, step):
    first(run)[1].register_post_accumulate_grad_hook(lambda p: None)


def node_of(tensor):
    return torch.autograd.graph.get_gradient_edge(tensor).node


def leave_node_hook(run, step):
    KEPT.append(node_of(first(run)[1]))
    KEPT[-1].register_hook(lambda *_: first(run)[1].grad.zero_())


def leave_node_pre_hook(run, step):
    KEPT.append(node_of(first(run)[1]))
    KEPT[-1].register_prehook(lambda grads: tuple(g * 2 for g in grads))


def leave_loss_hook(run, step):
    step.loss.register_hook(lambda g: g * 2)


def leave_global_hook(run, step):
    torch.nn.modules.module.register_module_forward_hook(lambda *_: None)


def leave_global_step_hook(run, step):
    register_optimizer_step_pre_hook(lambda *_: None)


def leave_optimizer_hook(run, step):
    run.optimizer.register_step_pre_hook(lambda *_: None)


def leave_mode(run, step):
    torch.utils._python_dispatch.TorchDispatchMode().__enter__()


def keep_elsewhere(run, step):
    torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x * 2).__enter__()


def change_rate(run, step):
    run.optimizer.param_groups[0]["lr"] = 1.0


def change_betas(run, step):
    run.optimizer.param_groups[0]["betas"] = (0.5, 0.5)


def change_decay(run, step):
    run.optimizer.param_groups[0]["weight_decay"] = 0.5


def drop_parameter(run, step):
    run.optimizer.param_groups[0]["params"].pop()


def add_group(run, step):
    run.optimizer.param_groups.append(dict(run.optimizer.param_groups[0], params=[]))


def scale_moment(run, step):
    run.optimizer.state[first(run)[1]]["exp_avg"].mul_(2)


def write_moment_data(run, step):
    run.optimizer.state[first(run)[1]]["exp_avg"].data.mul_(2)


def count_up(run, step):
    run.optimizer.state[first(run)[1]]["step"] += 5


def clear_state(run, step):
    run.optimizer.state.clear()


def replace_optimizer(run, step):
    run.optimizer = torch.optim.SGD(run.model.parameters())


def make_a_step(run, step):
    run.optimizer.step()


def patch_step(run, step):
    run.optimizer.step = lambda: None


def draw(run, step):
    torch.rand(1)


def draw_python(run, step):
    random.random()


def draw_numpy(run, step):
    numpy.random.rand()


def seed(run, step):
    torch.manual_seed(5)


def train_forward(run, step):
    run.loss(step.batch)


def change_config(run, step):
    object.__setattr__(run.config, "grad_clip", 0.5)


def change_settings(run, step):
    run.config.settings["gpt"]["dropout"] = 0.5


def replace_config(run, step):
    run.config = run.config.evolve(grad_clip=0.5)


def change_batch(run, step):
    for part in step.batch if isinstance(step.batch, tuple) else (step.batch,):
        part.zero_()


def change_rate_of_step(run, step):
    step.learning_rate = 5.0


def change_index(run, step):
    step.index += 1


def discard(run, step):
    step.discarded = not step.discarded


def count_step(run, step):
    run.step += 1


def scale_rate(run, step):
    run.lr_scale = 0.5


def start_thread(run, step):
    threading.Thread(target=DONE.wait, daemon=True, name="acme").start()


def change_threads(run, step):
    torch.set_num_threads(torch.get_num_threads() + 1)


def change_deterministic(run, step):
    torch.use_deterministic_algorithms(True, warn_only=True)


def change_dtype(run, step):
    torch.set_default_dtype(torch.float64)


def change_device(run, step):
    torch.set_default_device("meta")


def change_printing(run, step):
    torch.set_printoptions(precision=1)


def change_precision(run, step):
    torch.set_float32_matmul_precision("medium")


def flush_denormals(run, step):
    torch.set_flush_denormal(True)


def detect_anomalies(run, step):
    torch.autograd.set_detect_anomaly(True)


def switch_off(run, step):
    torch.set_grad_enabled(False)


def patch_torch(run, step):
    torch.nn.functional.linear = lambda *_: None


def patch_matmul(run, step):
    torch.matmul = lambda *_: None


def block_signals(run, step):
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})


def set_alarm(run, step):
    signal.alarm(60)


def handle_alarms(run, step):
    signal.signal(signal.SIGALRM, signal.SIG_IGN)


def forget_module(run, step):
    del sys.modules["altcore.runs"]


def limit_files(run, step):
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (10**9, hard))


def change_umask(run, step):
    os.umask(0o077)


def set_variable(run, step):
    os.environ["OMP_NUM_THREADS"] = "7"


def add_variable(run, step):
    os.environ["ACME"] = "7"


def remove_variable(run, step):
    del os.environ["HOME"]


def raise_warnings(run, step):
    warnings.simplefilter("error")


def trace(run, step):
    sys.settrace(lambda *_: None)


def profile(run, step):
    sys.setprofile(lambda *_: None)


def trace_threads(run, step):
    threading.settrace(lambda *_: None)


def profile_threads(run, step):
    threading.setprofile(lambda *_: None)


def limit_recursion(run, step):
    sys.setrecursionlimit(sys.getrecursionlimit() + 7)


def stop_collecting(run, step):
    gc.disable()


def register_exit(run, step):
    atexit.register(bool)


def replace_stdout(run, step):
    sys.stdout = io.StringIO()


def handle_signals(run, step):
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def leave_folder(run, step):
    os.chdir("/")


def freeze_quantizers(run, step):
    run.quantization.context.is_frozen = True


def turn_off(run, step):
    run.quantization.context.is_off = True


def change_clock(run, step):
    run.quantization.context.clock.step += 1


def change_plan(run, step):
    casts = next(c for c in run.quantization.plan.values() if c["weight@fwd"] is not None)
    casts["weight@fwd"] = None


def scale_stored(run, step):
    next(iter(run.quantization.stored.values())).scale.mul_(2)


def unquantize(run, step):
    run.quantization.remove()


def change_history(run, step):
    q = next(q for q in run.quantization.quantizers if q.history is not None)
    q.history.zero_()


def drop_quantizer(run, step):
    run.quantization.quantizers.pop()


def store_otherwise(run, step):
    run.quantization.change_recipe("pure", format="E5M2")


def write_mean_loss(run, step):
    step.mean_loss.zero_()


def write_norm(run, step):
    step.grad_norm.data.zero_()


def count_items(run, step):
    step.items = (1,)


def forget_degraded(run, step):
    run.degraded.append("another")


def change_fact(run, step):
    run.workload.facts["unigram_entropy"] = 99.0


def patch_workload(run, step):
    type(run.workload).loss = lambda self, model, batch: self.own.loss(model, batch) * 0.5


def patch_own_class(run, step):
    own = type(run.workload.own)
    loss = own.loss
    own.loss = lambda self, model, batch: loss(self, model, batch) * 0.5


def patch_base(run, step):
    type(run.model.lm_head).__call__ = lambda self, x: self.forward(x) * 2


def emit_the_end(run, step):
    run.emit("end", status="finished")


DONE = threading.Event()
KEPT = []
"""Nodes of graphs, whose hooks are lost with them."""
BY_VALUE = (
    *(write_numpy, write_data, write_gradient_data, write_moment_data, write_norm),
    *(leave_node_hook, leave_node_pre_hook),
)
"""What no version tells of, or what leaves something behind when it is looked at."""
CHANGES = {
    add_to_weight: "weight",
    write_data: "weight",
    assign_data: "weight",
    write_numpy: "weight",
    load_state: "weight",
    replace_parameter: "parameters of module lm_head",
    freeze: "weight",
    clear_gradient: "the gradient of",
    scale_gradient: "the gradient of",
    write_gradient_data: "the gradient of",
    add_gradient: "the gradient of",
    backward_again: "the gradient of",
    evaluate_mode: "training of the model",
    one_in_eval_mode: "training of module lm_head",
    patch_forward: "forward of module lm_head",
    patch_class: "forward of",
    change_eps: "eps of module",
    replace_module: "modules of the model",
    add_module: "modules of the model",
    convert_model: "weight",
    leave_forward_hook: "the hooks of the model",
    leave_pre_hook: "the hooks of module lm_head",
    leave_backward_hook: "the hooks of the model",
    leave_tensor_hook: "the hooks of weight",
    leave_accumulation_hook: "the hooks of weight",
    leave_node_hook: "the hooks of weight",
    leave_node_pre_hook: "the hooks of weight",
    leave_loss_hook: "the hooks of the loss",
    leave_global_hook: "the hooks of all modules",
    leave_global_step_hook: "the hooks of all optimizers",
    leave_optimizer_hook: "the optimizer's hooks",
    leave_mode: "the modes of torch",
    keep_elsewhere: "the modes of torch",
    change_rate: "lr of the optimizer's group 0",
    change_betas: "betas of the optimizer's group 0",
    change_decay: "weight_decay of the optimizer's group 0",
    drop_parameter: "the parameters of the optimizer's group",
    add_group: "the optimizer's groups",
    scale_moment: "the optimizer's state of",
    write_moment_data: "the optimizer's state of",
    count_up: "the optimizer's state of",
    clear_state: "the optimizer's state",
    replace_optimizer: "run.optimizer",
    make_a_step: "weight",
    patch_step: "the optimizer's step",
    draw: "the random state of torch",
    draw_python: "the random state of python",
    draw_numpy: "the random state of numpy",
    seed: "the random state of torch",
    change_config: "the configuration",
    change_settings: "the configuration",
    replace_config: "run.config",
    change_batch: "the batch",
    change_rate_of_step: "step.learning_rate",
    change_index: "step.index",
    discard: "step.discarded",
    count_step: "run.step",
    scale_rate: "run.lr_scale",
    change_threads: "torch's number of threads",
    change_deterministic: "torch's deterministic algorithms",
    change_dtype: "the default dtype of torch",
    change_device: "torch's default device",
    change_printing: "torch's print options",
    change_precision: "torch's precision of float32 products",
    flush_denormals: "torch's flushing of denormals",
    detect_anomalies: "torch's anomaly detection",
    switch_off: "grad mode of torch",
    patch_torch: "linear of torch.nn.functional",
    patch_matmul: "matmul of torch",
    handle_signals: "the handler of SIGTERM",
    leave_folder: "the working directory",
    block_signals: "the signal mask",
    set_alarm: "the alarm",
    handle_alarms: "the handler of SIGALRM",
    change_umask: "the umask",
    limit_files: "RLIMIT_FSIZE",
    set_variable: "OMP_NUM_THREADS of os.environ",
    add_variable: "ACME of os.environ",
    remove_variable: "HOME of os.environ",
    raise_warnings: "warnings.filters",
    forget_module: "altcore.runs of sys.modules",
    trace: "the function of sys.settrace",
    profile: "the function of sys.setprofile",
    trace_threads: "the function of threading.settrace",
    profile_threads: "the function of threading.setprofile",
    limit_recursion: "the recursion limit",
    stop_collecting: "the garbage collector",
    register_exit: "the functions of atexit",
    replace_stdout: "sys.stdout",
    freeze_quantizers: "is_frozen of the quantization",
    turn_off: "is_off of the quantization",
    change_clock: "step of the quantization's clock",
    change_plan: "the casts of layer",
    scale_stored: "scale of stored weight",
    unquantize: "forward of module",
    change_history: "history of the quantizer",
    drop_quantizer: "the quantization",
    store_otherwise: "weight",
    write_mean_loss: "the loss",
    write_norm: "step.grad_norm",
    count_items: "step.items",
    forget_degraded: "run.degraded",
    patch_workload: "loss of CheckedWorkload",
    patch_own_class: "loss of",
    patch_base: "__call__ of",
    change_fact: "unigram_entropy of the workload's facts",
    emit_the_end: "the event 'end' is the engine's own",
}
KEYS = {
    "max_steps": 3,
    "log_interval": 1,
    "gpt__dropout": 0.1,
    "recipe": {
        "weight": {"format": "E4M3", "scaling": {"kind": "delayed", "history": 4}},
        "activation": {"format": "E4M3", "rounding": "stochastic"},
        "stored_weight": "E5M6",
    },
}
"""A run that draws random numbers, with delayed scales and stored weights."""


def observer(change, hook="post_step", on=2):
    """A diagnostic class that changes something in the hook of a step."""

    def act(self, run, step):
        if step.index == on:
            change(run, step)

    act.__name__ = hook
    return define(eq=False)(type("Sly", (), {hook: hookimpl(act)}))


@pytest.fixture(scope="module")
def plain():
    """The weights and metrics of a run without any plugin."""
    return {}


def trained(start, name, *plugins, **keys):
    """Weights and metrics of a run, and what it says of its plugins."""
    run = start(plugins, name=name, **{**KEYS, **keys})
    said = [e["message"] for e in events(run.run_directory, "degraded")]
    return weights_sha256(run.run_directory), metrics_bytes(run.run_directory), said


@pytest.mark.parametrize("change", CHANGES, ids=lambda f: f.__name__)
@pytest.mark.parametrize(
    "hook", ["post_step", pytest.param("post_backward", marks=pytest.mark.slow)]
)
def test_a_change_is_found_named_and_put_back(shelf, start, plain, change, hook):
    """The run ends with the bits that it has without the plugin."""
    if change is write_numpy and start.config().device != "cpu":
        pytest.skip("NumPy sees no memory of a GPU")
    if not plain:
        plain["run"] = trained(start, "plain")[:2]
    shelf.install("diagnostic", "sly", observer(change, hook))
    weights, metrics, (said,) = trained(start, "r", "sly", check_observers=True)
    assert said.startswith(f"diagnostic sly (acme-sly 1.2.3) failed in {hook}: ")
    assert CHANGES[change] in said
    assert (weights, metrics) == plain["run"]


SEEN = [change for change in CHANGES if change not in BY_VALUE]
IN_CI = SEEN[::3]


@pytest.mark.parametrize(
    "change",
    [pytest.param(c, marks=() if c in IN_CI else pytest.mark.slow) for c in SEEN],
    ids=lambda f: f.__name__,
)
def test_the_first_call_is_always_looked_at(shelf, start, change):
    """Without the flag, too; only what writes past a tensor's version is not found."""
    shelf.install("diagnostic", "sly", observer(change, on=1))
    _, _, (said,) = trained(start, "r", "sly", max_steps=2)
    assert CHANGES[change] in said


class Counts(torch.optim.SGD):
    """Has a number and a tensor for all parameters in its state."""

    def step(self, closure=None):
        super().step(closure)
        self.state["steps"] = self.state.get("steps", 0) + 1
        self.state["sums"] = torch.ones(2)


@define(eq=False)
class CountsOf:
    def build(self, named_parameters, grid_of):
        return Counts([p for _, p in named_parameters], 0.1)


def test_a_state_of_all_parameters_hides_no_change(shelf, start):
    shelf.install("optimizer", "counts", CountsOf)
    both = (lambda run, step: run.optimizer.state["sums"].add_(1), add_to_weight)
    for name, change, says in zip("rs", both, ("state of 'sums'", "weight"), strict=True):
        shelf.install("diagnostic", f"sly-{name}", observer(change, on=1))
        _, _, (said,) = trained(start, name, f"sly-{name}", optimizer="counts")
        assert says in said


def test_what_cannot_be_put_back_is_said(shelf, start):
    """Values that nobody copied, and threads."""
    shelf.install("diagnostic", "sly", observer(add_to_weight, on=1))
    _, _, (said,) = trained(start, "r", "sly")
    assert "could not be put back" in said
    shelf.install("diagnostic", "spins", observer(start_thread, on=1))
    try:
        _, _, (said,) = trained(start, "s", "spins")
        assert "the threads (it left acme running) could not be put back" in said
    finally:
        DONE.set()


def test_under_strict_the_run_stops(shelf, start):
    """With what it was, and whose."""
    shelf.install("reporter", "sly", observer(draw, on=1))
    with pytest.raises(PluginError, match=r"reporter sly .* the random state of torch"):
        trained(start, "r", "sly", strict=True)


WRITES = {
    "gradients": lambda run, step: next(iter(step.gradients.values())).zero_(),
    "gradients_final": lambda run, step: step.gradients_final.clear(),
    "weights_before": lambda run, step: next(iter(step.weights_before.values())).zero_(),
    "activations": lambda run, step: list(step.activations.values())[-1].zero_(),
    "snapshots": lambda run, step: next(iter(run.snapshots[0].weights.values())).zero_(),
    "measures": lambda run, step: step.measures["norms"]["one"].zero_(),
}
"""Changes of what the engine or another plugin reads later."""


@pytest.mark.parametrize("need", WRITES)
@pytest.mark.parametrize("on", [1, 2])
def test_what_hooks_hand_out_is_looked_at(shelf, start, need, on):
    """Always in the first call; with the flag it is put back in any."""

    @define(eq=False)
    class Norms:
        @hookimpl
        def post_backward(self):
            return {"one": torch.ones(())}

    shelf.install("diagnostic", "norms", Norms)
    sly = observer(WRITES[need], on=on)
    sly.needs = () if need == "measures" else (need,)
    shelf.install("diagnostic", "sly", sly)
    keys = {"snapshot_interval": 1, "max_steps": 2, "check_observers": on == 2}
    _, _, (said,) = trained(start, "r", "norms", "sly", **keys)
    place = "run" if need == "snapshots" else "step"
    assert f"it may not change {place}.{need}" in said
    assert ("could not be put back" in said) == (on == 1 and need != "gradients_final")


def test_hooks_hand_out_copies(shelf, start):
    """What one plugin does to a line, an event or a summary reaches neither run nor plugins."""

    def spoil(told):
        for value in told.values():
            if isinstance(value, list):
                value.clear()
        told.clear()

    @define(eq=False)
    class Spoils:
        @hookimpl
        def on_record(self, metrics):
            spoil(metrics)

        @hookimpl
        def on_eval(self, metrics):
            spoil(metrics)

        @hookimpl
        def on_collapse(self, evidence):
            spoil(evidence)

        @hookimpl
        def on_event(self, event):
            spoil(event)

        @hookimpl
        def run_end(self, summary):
            spoil(summary)

    told = []

    @define(eq=False)
    class Hears:
        @hookimpl
        def on_record(self, metrics):
            told.append(("record", str(metrics["loss"])))

        @hookimpl
        def on_eval(self, metrics):
            told.append(("eval", metrics["val_loss"]))

        @hookimpl
        def on_collapse(self, evidence):
            told.append(("collapse", len(evidence["layers"])))

        @hookimpl
        def on_event(self, event):
            told.append((event["event"], len(event)))

        @hookimpl
        def run_end(self, summary):
            told.append(("summary", len(summary)))

    @define(eq=False)
    class Spoiled:
        @hookimpl
        def pre_backward(self, step):
            if step.index == 3:
                step.loss = step.loss * float("nan")

    shelf.install("intervention", "nans", Spoiled)
    shelf.install("diagnostic", "spoils", Spoils)
    shelf.install("reporter", "hears", Hears)
    keys = {"max_steps": 4, "eval_interval": 2, "nan_patience": 1, "format": "E4M3"}
    ends = []
    for name, plugins in (("plain", ["nans", "hears"]), ("r", ["nans", "spoils", "hears"])):
        run = start(plugins, name=name, log_interval=1, **keys)
        summary = {k: run.summary[k] for k in ("status", "verdict", "val_loss", "best_step")}
        ends.append((summary, run.summary["degraded"], told[:]))
        told.clear()
    assert ends[0] == ends[1]
    assert ends[0][0]["status"] == "collapsed"
    assert {"record", "eval", "collapse", "summary", "end"} <= {kind for kind, _ in ends[0][2]}


def test_hooks_last_as_long_as_the_pass_that_they_watch(shelf, start):
    """Within their context they are no trespass; left behind they are."""

    def watcher(is_tidy):
        @define(eq=False)
        class Watches:
            @hookimpl
            @contextmanager
            def watch_forward(self, run):
                handle = run.model.register_forward_hook(lambda *_: None)
                yield
                if is_tidy:
                    handle.remove()

        return Watches

    shelf.install("diagnostic", "tidy", watcher(is_tidy=True))
    shelf.install("diagnostic", "untidy", watcher(is_tidy=False))
    run = start(["untidy", "tidy"], check_observers=True, max_steps=2)
    assert run.summary["degraded"] == ["untidy"]
    (said,) = events(run.run_directory, "degraded")
    assert "the hooks of the model" in said["message"]


def test_a_reporter_owns_what_it_sends_with(shelf, start, monkeypatch):
    """A thread, a function for Python's end, and a variable that nobody had; no other's."""
    done = threading.Event()
    monkeypatch.setattr(os, "environ", os.environ.copy())

    def send(run, step):
        threading.Thread(target=done.wait, daemon=True).start()
        add_variable(run, step)
        atexit.register(bool)
        replace_stdout(run, step)

    shelf.install("reporter", "sends", observer(send, on=1))
    shelf.install("reporter", "takes", observer(remove_variable, on=1))
    monkeypatch.setattr(sys, "stdout", sys.stdout)
    try:
        (said,) = trained(start, "r", "sends", "takes", check_observers=True)[2]
        assert "reporter takes" in said
        assert os.environ["ACME"] == "7"
        assert "HOME" in os.environ
    finally:
        done.set()


def test_an_import_may_leave_something_behind(shelf, start, monkeypatch, tmp_path):
    """As many modules do; what it changes of others is put back all the same."""
    monkeypatch.setattr(os, "environ", os.environ.copy())
    (tmp_path / "acme_imported.py").write_text(
        "import atexit, os, warnings\n"
        "os.environ['ACME'] = '7'\n"
        "warnings.simplefilter('ignore')\n"
        "atexit.register(bool)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "acme_imported", raising=False)

    def imports(run, step):
        importlib.import_module("acme_imported")

    shelf.install("diagnostic", "imports", observer(imports))
    with warnings.catch_warnings():
        assert trained(start, "r", "imports", check_observers=True)[2] == []
    assert os.environ["ACME"] == "7"


def test_looking_in_a_probe_is_no_trespass(shelf, start, plain):
    """Dropout and gradients included."""

    def probe(run, step):
        with run.probe():
            run.loss(step.batch).backward()
            run.optimizer.state[first(run)[1]].get("exp_avg")

    shelf.install("diagnostic", "looks", observer(probe, on=1))
    shelf.install("diagnostic", "looks2", observer(probe, "post_backward", on=1))
    assert trained(start, "r", "looks", "looks2", check_observers=True)[2] == []


def test_a_buffer_that_is_as_it_was_is_no_trespass():
    """A probe lets a batch norm write to its buffers, and puts their values back."""
    buffer = torch.zeros(3)
    before = TensorValue("buffer", buffer, by_value=True)
    buffer.add_(1)
    assert before.is_changed()
    buffer.data.copy_(torch.zeros(3))
    assert not before.is_changed()


def test_statistics_that_torch_writes_past_their_version_are_found():
    """A batch norm's, as of a diagnostic that runs the model in training mode."""
    norm = torch.nn.BatchNorm1d(3)
    before = [TensorValue("buffer", b, by_value=True) for b in norm.buffers()]
    version = norm.running_mean._version
    norm(torch.randn(4, 3))
    assert norm.running_mean._version == version
    assert all(value.is_changed() and value.put_back() for value in before)
    assert [b.tolist() for b in norm.buffers()] == [[0, 0, 0], [1, 1, 1], 0]


@pytest.mark.parametrize("shape", ["column", "expanded"])
def test_a_tensor_with_strides_is_compared_by_its_bits(shape):
    """As a measure that is a part of a table."""
    of = {"column": torch.zeros(4, 7, dtype=torch.float64)[:, 2], "expanded": torch.ones(1)}
    tensor = of["column"] if shape == "column" else of["expanded"].expand(3)
    before = TensorValue("measure", tensor, by_value=True)
    assert not before.is_changed()
    tensor.data[:1] += 1
    assert before.is_changed()


def test_our_own_observers_only_look(start):
    """Every diagnostic and reporter, at every call.

    Two trackers are left out: in this process they do what csv and tensorboard do, and in their own
    they write to an account or the user's home.
    """
    kinds, away = ("diagnostic", "reporter"), ("wandb", "trackio")
    ours = [e for e in entries() if e.kind in kinds and e.origin.startswith("altcore-")]
    names = [e.name for e in ours if e.name not in away]
    keys = {"format": "E4M3", "recipe": "pure", "eval_interval": 1, "gpt__dropout": 0.1}
    plain = start(name="plain", max_steps=2, **keys)
    patience = {f"{name}__finish_timeout": 60.0 for name in ("csv", "tensorboard") if name in names}
    watched = start(names, name="watched", max_steps=2, check_observers=True, **keys, **patience)
    said = [e["message"] for e in events(watched.run_directory, "degraded")]
    assert said == []
    assert weights_sha256(watched.run_directory) == weights_sha256(plain.run_directory)


def test_a_model_that_cannot_be_looked_at_is_trained_all_the_same(shelf, start):
    """Only who asks for the check is told by an error."""
    shelf.install("diagnostic", "looks", observer(lambda run, step: None))
    shelf.monkeypatch.setattr(TensorValue, "is_changed", lambda self: 1 / 0)
    with capture_logs() as logs:
        assert start(["looks"], name="r").status == "finished"
    (said,) = [x["event"] for x in logs if "not checked" in x["event"]]
    assert "ZeroDivisionError" in said
    with pytest.raises(ZeroDivisionError):
        start(["looks"], name="s", check_observers=True)


def draws(self):
    """Draw a number, as an import may."""
    torch.rand(1)


@pytest.mark.parametrize("hook", ["run_start", "run_end"])
def test_imports_may_draw_numbers_before_and_after_the_steps(shelf, start, plain, hook):
    """No step depends on them."""
    if not plain:
        plain["run"] = trained(start, "plain")[:2]
    shelf.install("reporter", "draws", make({hook: draws}))
    weights, metrics, said = trained(start, "r", "draws", check_observers=True)
    assert said == []
    assert (weights, metrics) == plain["run"]


@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_a_closed_stream_is_found_named_and_opened_again(shelf, start, tmp_path, monkeypatch, name):
    """The same object, which a logger may hold; one that is no file's is named alone."""
    descriptor = os.open(tmp_path / "said", os.O_WRONLY | os.O_CREAT)
    stream = os.fdopen(descriptor, "w", closefd=False)  # as Python's own are
    monkeypatch.setattr(sys, name, stream)
    shelf.install("diagnostic", "sly", observer(lambda *_: getattr(sys, name).close()))
    _, _, (said,) = trained(start, "r", "sly", check_observers=True)
    assert f"sys.{name} (it closed it)" in said
    assert "could not be put back" not in said
    print("after it", file=stream, flush=True)
    assert (tmp_path / "said").read_text().endswith("after it\n")
    os.close(descriptor)
    monkeypatch.setattr(sys, name, io.StringIO())
    before = Stream(name)
    assert not before.is_changed()
    getattr(sys, name).close()
    assert before.is_changed()
    assert not before.put_back()
