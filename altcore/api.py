"""altcore from Python: everything is checked and built before anything is written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from attrs import field, frozen
from torch import nn

from altcore.config import TrainConfig, load_with_sources
from altcore.engine import (
    build_workload,
    data_of,
    given_data,
    kinds_of,
    only_run,
    plain_modes,
    prepare,
    process_kept,
    resumed_with_keys,
)
from altcore.errors import BadInput, Source, located, shown
from altcore.formats import digest
from altcore.log import log
from altcore.quantization import find_layers, tied_matrices
from altcore.recipes import Layer
from altcore.registry import left_out
from altcore.runs import read_run, step_lines
from altcore.signals import handling_signals


@frozen
class Result:
    """The outcome of a run."""

    format_name: str
    status: str
    """finished, collapsed or stopped."""
    verdict: str
    """How it went, in one line."""
    steps_completed: int
    final_loss: float | None
    failure_step: int | None
    failure_reason: str | None
    format_shifted_to: str | None
    shift_step: int | None
    metrics_history: list[dict[str, Any]] = field(repr=False)
    """The engine's own numbers, a dict a recorded step."""
    diagnostics_history: list[dict[str, Any]] = field(repr=False)
    """The plugins' measures, a dict a step on which one measured."""
    failure_report_path: Path | None
    run_directory: Path
    files: dict[str, Path] = field(repr=False)
    """The path of everything that the run wrote, by its path in the run's directory."""
    summary: dict[str, Any] = field(repr=False)
    """All that summary.json holds; see docs/summary.md."""

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return read_run(self.run_directory)._repr_html_()


def train(
    config: TrainConfig | Mapping[str, Any] | str | Path | None = None,
    model: nn.Module | None = None,
    data: Any = None,
    device: str | None = None,
    *,
    loss: Callable[[nn.Module, Any], Any] | None = None,
    preset: str | None = None,
    resume: str | None = None,
    allow_change: Sequence[str] = (),
) -> Result:
    """Train, and return the outcome, as ``altcore train`` does.

    Distributions whose metadata cannot be read are left out, and named by one warning a process.
    Works under `torch.no_grad` and `torch.inference_mode`, too, and leaves the caller's autocast:
    the types of products are those of ``compute``. A collapse is a result, no error.
    What the run's plugins change of the process, such as torch's threads and flags or the working
    directory, is put back when it ends: the next run computes as a first one.
    The threads of a process share random states and flags, so one of them trains at a time, and the
    others are to draw no random numbers. Outside the main thread a run handles no signals.

    Args:
        config: a YAML file or a mapping of keys, original flat keys included, or a `TrainConfig`;
            if None the defaults. With ``resume`` a mapping holds what is to be another than in the
            run, whose other keys stay; a file or a `TrainConfig` is complete.
        model: takes the place of the workload's model. A part of it that is in evaluation mode,
            such as a frozen batch norm, stays in it.
        data: takes the place of the workload's data: a path, or a function
            ``(split, step, micro) -> batch``. A function takes the workload's facts of data with
            it: nothing is known of a unigram entropy.
        device: takes the place of the configuration's.
        loss: takes the place of the workload's: a function ``(model, batch)`` that returns a 0-dim
            tensor, or that and measures by name. It takes the unigram entropy with it, too. Its own
            parameters are not trained, and no checkpoint has its variables: warnings name both.
        preset: the name of a preset, to which the keys of a file or mapping are added.
        resume: the name of a run in the configuration's ``runs_dir`` to go on with.
        allow_change: what may be another than it was in that run: ``configuration``, ``data``,
            ``format``, ``recipe``, ``plugin`` or ``world_size``, or one key.

    Raises:
        BadInput: before anything is written.
        Interrupted: after a checkpoint, if a signal came while it trained.
        KeyboardInterrupt: for a signal before that, and for a second SIGINT.
        AltcoreError: if the run fails.
    """
    if not (model is None or isinstance(model, nn.Module)):
        raise BadInput(f"a torch.nn.Module is needed, not {shown(model)}", key="model")
    if not (loss is None or callable(loss)):
        raise BadInput(f"a function (model, batch) is needed, not {shown(loss)}", key="loss")
    if model is not None and _is_for_inference(model):
        problem = "it was made under torch.inference_mode, and cannot be trained"
        raise BadInput(problem, key="model")
    if resume is not None and preset is None and (config is None or isinstance(config, Mapping)):
        given, sources = resumed_with_keys(resume, config or {})
    else:
        given, sources = _as_config(config, preset)
    # After the configuration, for which families of formats are asked.
    for line in left_out(again=False):
        log.warning(line)
    if device is not None:
        given = given.evolve(device=device)
    given, batch = given_data(given, data)
    # The caller may have switched gradients off, or autocast on.
    with (
        only_run(),
        process_kept(may_add_variables=True),
        handling_signals(),
        plain_modes(),
    ):
        with located(sources):
            engine = prepare(
                given, model=model, batch=batch, loss=loss, resume=resume, allow_change=allow_change
            )
        try:
            return result(engine.train(), given)
        finally:
            # The model may be the caller's own.
            engine.run.quantization.remove()


def _is_for_inference(model: nn.Module) -> bool:
    tensors = (*model.parameters(), *model.buffers())
    return any(t.is_inference() for t in tensors if not nn.parameter.is_lazy(t))


def _as_config(
    config: TrainConfig | Mapping[str, Any] | str | Path | None, preset: str | None
) -> tuple[TrainConfig, dict[str, Source | None]]:
    added = {} if preset is None else {"preset": preset}
    if isinstance(config, TrainConfig):
        if added:
            problem = "a TrainConfig is complete: give the preset to altcore.load_config"
            raise BadInput(problem, key="preset", part=repr(preset))
        return config, {}
    if isinstance(config, Mapping):
        return load_with_sources(overrides={**config, **added})
    if not (config is None or isinstance(config, str | Path)):
        raise BadInput(f"keys or a YAML file are needed, not {shown(config)}", key="config")
    return load_with_sources(config, added)


def layers_of(
    config: TrainConfig,
    model: nn.Module | None = None,
    data: Callable[[str, int, int], Any] | None = None,
    loss: Callable[[nn.Module, Any], Any] | None = None,
) -> tuple[list[Layer], list[list[str]], dict[str, Any]]:
    """Return the layers of the configuration's model, the names that share a parameter, and facts.

    The facts are the workload's own, and ``data``: what its data are known by. ``model``, ``data``
    and ``loss`` take the place of the workload's; a model brings ``modules``, a digest of theirs.
    """
    cpu = torch.device("cpu")
    workload = build_workload(config, cpu, model, data, loss)
    known_by = data_of(workload, cpu, is_given=data is not None)
    layers = [layer for layer, _ in find_layers(workload.model).values()]
    ties = [names for names, _ in tied_matrices(workload.model)]
    own = {} if model is None else {"modules": digest(kinds_of(model))}
    return layers, ties, {**workload.facts, "data": known_by, **own}


def result(summary: Mapping[str, Any], config: TrainConfig) -> Result:
    """Return the `Result` of a run that ended with ``summary``."""
    directory = Path(summary["directory"])
    lines = step_lines(directory)
    shift = summary["shifts"][-1] if summary["shifts"] else None
    reports = [directory / r for r in summary["reports"]]
    return Result(
        format_name=summary["format"],
        status=summary["status"],
        verdict=summary["verdict"],
        steps_completed=summary["steps"],
        final_loss=summary["final_loss"],
        failure_step=summary["failure_step"],
        failure_reason=summary["failure_reason"],
        format_shifted_to=(", ".join(shift["to"]) or "none") if shift else None,
        shift_step=shift["step"] if shift else None,
        metrics_history=[{k: v for k, v in x.items() if "/" not in k} for x in lines],
        diagnostics_history=[
            {k: v for k, v in x.items() if "/" in k or k == "step"}
            for x in lines
            if any("/" in k for k in x)
        ],
        failure_report_path=next((r for r in reports if r.name.startswith("failure")), None),
        run_directory=directory,
        files=_files(directory),
        summary=dict(summary),
    )


def _files(directory: Path) -> dict[str, Path]:
    """Return what a run wrote: its files, and each checkpoint as one folder."""
    files = [p for p in directory.rglob("*") if p.is_file() and not p.name.startswith(".")]
    whole = {p.parent if p.parent.parent.name == "checkpoints" else p for p in files}
    return {p.relative_to(directory).as_posix(): p for p in sorted(whole)}
