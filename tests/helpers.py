"""What several tests share: installing plugins, running tiny trainings, reading what they left."""

from __future__ import annotations

import hashlib
import importlib
import os
import random
import sys
import types
from pathlib import Path
from typing import Any

from attrs import define, field

# ------------------------------------------------------------------------------ plugins


def forget_installed() -> None:
    """Let altcore look again at what is installed."""
    from altcore import registry
    from altcore.formats import lookup

    importlib.invalidate_caches()
    registry.installed.cache_clear()
    registry._broken_families.clear()
    lookup.format_named.cache_clear()


@define
class PluginShelf:
    """Distributions of a test: their metadata as pip would leave it, their code in memory."""

    folder: Path
    monkeypatch: Any
    count: int = 0

    def install(
        self, kind: str, name: str, thing: Any, distribution: str = "", version: str = "1.2.3"
    ) -> str:
        """Install ``thing`` as the entry point ``name`` of a kind; returns the name."""
        self.count += 1
        module = types.ModuleType(f"altcore_tested_{self.folder.parent.name}_{self.count}")
        module.thing = thing
        self.monkeypatch.setitem(sys.modules, module.__name__, module)
        distribution = distribution or f"acme-{name}"
        info = self.folder / f"{distribution.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\nSummary: a test's\n"
        )
        (info / "entry_points.txt").write_text(
            f"[altcore.{kind}s]\n{name} = {module.__name__}:thing\n"
        )
        forget_installed()
        return name


# --------------------------------------------------------------------------------- runs

WORDS = ("the", "grid", "holds", "few", "numbers", "each", "weight", "lives", "on", "one", "of")


def text_file(path: Path) -> Path:
    """Write some 20 kB of text that is always the same."""
    draw = random.Random(7)
    path.write_text(" ".join(draw.choice(WORDS) for _ in range(5000)))
    return path


def run_directory(folder: Path, **keys: Any) -> Any:
    """Make the directory of a run, in ``runs`` below a folder."""
    from altcore.config import TrainConfig
    from altcore.runs import RunDirectory

    return RunDirectory.create(TrainConfig(**keys), folder / "runs")


@define
class Starter:
    """Trains the workload gpt at size tiny, cut down further, into one folder of runs."""

    runs: Path
    corpus: Path
    keys: dict[str, Any] = field(factory=dict)

    def config(self, plugins: tuple[str, ...] | list[str] = (), **keys: Any) -> Any:
        """Return a TrainConfig: without observers, in float32, three steps.

        ``gpt__n_layer=2`` sets gpt.n_layer; a key that is None is left out.
        """
        from altcore.config import defaults, load_config

        without = [name for name in defaults()["observers"] if name not in plugins]
        given = {
            "device": os.environ.get("ALTCORE_TEST_DEVICE", "cpu"),
            "max_steps": 3,
            "warmup_steps": 1,
            "learning_rate": 1e-2,
            "eval_interval": 0,
            "checkpoint_interval": 0,
            "eval_steps": 1,
            "runs_dir": str(self.runs),
            "plugins": list(plugins),
            "workload": "gpt",
        }
        if keys.get("workload", "gpt") == "gpt":
            given |= {
                "gpt.size": "tiny",
                "gpt.n_layer": 1,
                "gpt.block_size": 16,
                "gpt.batch_size": 4,
                "gpt.data": str(self.corpus),
            }
        given |= {key.replace("__", "."): value for key, value in {**self.keys, **keys}.items()}
        overrides = [(key, value, None) for key, value in given.items() if value is not None]
        return load_config(overrides=overrides, without=without)

    def __call__(self, plugins: tuple[str, ...] | list[str] = (), **keys: Any) -> Any:
        """Train; returns the Result."""
        import altcore

        return altcore.train(self.config(plugins, **keys))

    def engine(self, plugins: tuple[str, ...] | list[str] = (), **keys: Any) -> Any:
        """Return the engine of a run that has not begun."""
        from altcore.engine import setup

        return setup.prepare(self.config(plugins, **keys))

    def resume(self, name: str, **changes: Any) -> Any:
        """Go on with a run of the folder; returns the Result."""
        import altcore
        from altcore.engine import resuming
        from altcore.errors import located

        config, sources = resuming.resumed_with_sources(name, str(self.runs), **changes)
        with located(sources):
            return altcore.train(config, resume=name)


def checkpoints(run: Path) -> list[str]:
    """Return the names of a run's checkpoints."""
    return sorted(
        p.name for p in (run / "checkpoints").iterdir() if p.is_dir() and p.name != "snapshots"
    )


def state(run: Path, name: str | None = None) -> dict[str, Any]:
    """Return the state in a run's checkpoint, the last one if none is named."""
    from altcore.runs import checkpoint

    folder = run / "checkpoints"
    return checkpoint.load_checkpoint(folder / (name or (folder / "last").read_text())).state


def sha256(tensors: Any) -> str:
    """Return the digest of a mapping of tensors: names, shapes and bits."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()


def weights_sha256(run: Path, name: str | None = None) -> str:
    """Return the digest of the weights in a run's checkpoint."""
    return sha256(state(run, name)["model"])


def metrics_bytes(run: Path) -> bytes:
    """Return metrics.jsonl as it lies there."""
    return (run / "metrics.jsonl").read_bytes()


def as_killed(run):
    """Let a run that ended be one that went on, and was killed: it has no summary.json."""
    (run / "summary.json").unlink()
    with (run / "events.jsonl").open("a") as lines:
        lines.write('{"step": 0, "event": "resume"}\n')


def events(run: Path, *kinds: str) -> list[dict[str, Any]]:
    """Return a run's events, of some kinds or all."""
    from altcore.runs import read_lines

    found = read_lines(run / "events.jsonl")
    return [e for e in found if not kinds or e["event"] in kinds]


# ------------------------------------------------------------------------ a plugin that looks


def tracer(log: list[str], label: str = "") -> type:
    """Return a plugin class that writes every hook with step and micro-batch to ``log``."""
    from altcore import hookimpl

    @define(eq=False)
    class Trace:
        @hookimpl
        def run_start(self, run):
            log.append(f"{label}run_start")

        @hookimpl
        def pre_backward(self, run, step):
            log.append(f"{label}pre_backward {step.index}.{step.micro}")

        @hookimpl
        def post_backward(self, run, step):
            log.append(f"{label}post_backward {step.index}")

        @hookimpl
        def pre_step(self, run, step):
            log.append(f"{label}pre_step {step.index}")

        @hookimpl
        def post_step(self, run, step):
            log.append(f"{label}post_step {step.index}")

        @hookimpl
        def on_nan(self, run, step, where):
            log.append(f"{label}on_nan {step.index}: {where.what} of {where.layer}")

        @hookimpl
        def on_collapse(self, run, step, evidence):
            log.append(f"{label}on_collapse {step.index}: {evidence['cause']}")

        @hookimpl
        def on_record(self, run, step, metrics):
            log.append(f"{label}on_record {metrics['step']}")

        @hookimpl
        def on_event(self, run, event):
            log.append(f"{label}on_event {event['step']}: {event['event']}")

        @hookimpl
        def on_eval(self, run, step, metrics):
            log.append(f"{label}on_eval {step.index}")

        @hookimpl
        def run_end(self, run, summary):
            log.append(f"{label}run_end: {summary['status']}")

    return Trace
