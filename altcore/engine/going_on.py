"""Going on with a run: its newest valid checkpoint, if this is the run that wrote it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from attrs import frozen

from altcore.config import TrainConfig
from altcore.engine.apply import take_recipe
from altcore.engine.loop import Engine
from altcore.engine.state_checks import Built, check_state
from altcore.errors import BadInput, keyed
from altcore.runs import (
    Change,
    RunDirectory,
    about_platform,
    check_changes,
    compare,
    load_newest,
)
from altcore.yaml_files import read_mapping


@frozen(eq=False)
class GoingOn:
    """The checkpoint from which a run goes on, and what is different since."""

    name: str
    state: Mapping[str, Any]
    config: TrainConfig
    """With the changes that were accepted."""
    planned: int | None
    """The steps that the run was to make."""
    changes: Sequence[Change]

    @property
    def step(self) -> int:
        """The step after which the checkpoint was written."""
        return int(self.state["step"])

    @property
    def told(self) -> dict[str, Any]:
        """The data of the event ``resume``."""
        changes = [c.to_plain() for c in self.changes]
        return {"checkpoint": self.name, **({"changes": changes} if changes else {})}

    @property
    def remarks(self) -> list[str]:
        """Warnings for the user."""
        accepted = [c for c in self.changes if c.is_decisive]
        told = f"it is not the run that it was, as you allowed: {'; '.join(map(str, accepted))}"
        return [*([told] if accepted else []), *about_platform(self.changes)]

    def load_into(self, engine: Engine) -> None:
        """Restore the state; what was allowed to change is as it is now."""
        run = engine.run
        built = [dict(group) for group in run.optimizer.param_groups]
        engine.load_state_dict(self.state)
        accepted = [c for c in self.changes if c.is_decisive]
        if any(c.what.startswith(f"{run.config.optimizer}.") for c in accepted):
            for group, own in zip(run.optimizer.param_groups, built, strict=True):
                group.update({k: v for k, v in own.items() if k != "params"})
        if any(c.kind in ("format", "recipe") for c in accepted):
            take_recipe(run, "--allow-change")


def go_on(
    directory: RunDirectory,
    config: TrainConfig,
    identity: Mapping[str, Any],
    allowed: Sequence[str],
    built: Built,
) -> GoingOn:
    """Return the newest valid checkpoint of a run; nothing is written.

    Raises `BadInput` if the run has no step left to make, or is another one than it was and
    ``allowed`` does not name the change. The directory is then closed.
    """
    found: dict[str, list[Change]] = {}

    def check(state: Mapping[str, Any], manifest: Mapping[str, Any]) -> None:
        found["changes"] = compare(manifest.get("identity", {}), identity)
        with keyed(f"--resume {directory.path.name}"):
            check_changes(found["changes"], allowed=allowed, strict=config.strict)
        check_state(state, built)

    try:
        path = directory.path
        state, _, source = load_newest(path / "checkpoints", check)
        if state["step"] >= config.max_steps:
            raise BadInput(
                f"--resume {path.name}: the run is at step {state['step']} of "
                f"{config.max_steps}; give --steps or --set epochs=... a larger number to go on"
            )
        planned = read_mapping(path / "config.yaml", "run").get("max_steps")
    except BaseException:
        directory.close()
        raise
    accepted = [{"step": state["step"], **c.to_plain()} for c in found["changes"] if c.is_decisive]
    config = config.evolve(changes=(*config.changes, *accepted))
    return GoingOn(source.name, state, config, planned, found["changes"])
