"""Installed formats of which a checkpoint was written with other values than they have now.

A record holds such a format by its name and digest: what its values were is not known any more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from altcore.engine.state_checks import readable
from altcore.formats import changed_digests, digests_of, origins_of
from altcore.quantization import Quantization, unstored
from altcore.recipes import formats_in, resolved_from_plain, resolved_to_plain
from altcore.runs import Checkpoint


def identities(
    found: Checkpoint, now: Mapping[str, Any]
) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Return the identity of a checkpoint and that of now, with all formats that changed.

    An intervention may have brought formats of which the configuration says nothing.
    """
    before = found.manifest["identity"]
    states = [found.state or {}, *found.snapshots]
    recorded = {name: digest for state in states for name, digest in _recorded(state).items()}
    changed = changed_digests(recorded)
    if not changed:
        return before, now
    origins = origins_of(changed)
    was = {name: {"sha256": recorded[name]} for name in changed}
    are = {name: {"sha256": own, "from": origins[name]} for name, own in changed.items()}
    parts = ((before, was), (now, are))
    old, new = ({**one, "format": {**more, **_mapping(one.get("format"))}} for one, more in parts)
    return old, new


def usable_snapshots(found: Checkpoint) -> Sequence[Mapping[str, Any]]:
    """Return the snapshots whose formats are what they were: a rollback can go to no other one."""
    return [one for one in found.snapshots if not changed_digests(_recorded(one))]


def take_new_values(state: Mapping[str, Any], q: Quantization) -> None:
    """Let a state be one of today's formats, in place.

    Weights stored in a format that changed are on no grid until they are encoded anew.
    """
    changed = changed_digests(_recorded(state))
    if not changed:
        return
    with readable():
        held = state["quantization"]
        plan, names = unstored(q, resolved_from_plain(held["plan"]), changed)
        stored = {name: own for name, own in held["stored"].items() if name not in names}
        held |= {"plan": resolved_to_plain(plan), "stored": stored, "moments": {}}
        held["formats"] = digests_of(formats_in(plan))


def _recorded(state: Mapping[str, Any]) -> dict[str, str]:
    """Return the digests of the installed formats in a state, none if it is no state."""
    held = _mapping(_mapping(state.get("quantization")).get("formats"))
    return {name: digest for name, digest in held.items() if isinstance(digest, str)}


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
