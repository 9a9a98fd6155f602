"""``altcore plugins``: the installed plugins. ``list`` reads metadata and imports no plugin."""

from __future__ import annotations

from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import click

from altcore.cli.options import AS_JSON, Group, once, print_json, tell_left_out
from altcore.cli.terminal import echo, paragraph, title
from altcore.errors import BadInput, described
from altcore.registry import HOOK_KINDS, KINDS, Entry, entries, find, installed
from altcore.signals import is_from_signal

KIND = click.Choice(KINDS)


@click.group(cls=Group)
def plugins() -> None:
    """Show the installed formats and plugins."""


@plugins.command("list")
@once("--kind", type=KIND, help="Show only one kind.")
@AS_JSON
def list_(kind: str | None, as_json: bool) -> None:
    """List formats and plugins. This reads metadata and imports nothing."""
    tell_left_out(again=True)
    found = [e for e in entries() if kind in (None, e.kind)]
    names = [(e.kind, e.name) for e in found]
    rows = [
        {
            "name": e.name,
            "kind": e.kind,
            "help": e.help,
            "family": e.is_family,
            "distribution": e.distribution,
            "version": e.version,
            "summary": e.summary,
            "duplicate": names.count((e.kind, e.name)) > 1,
        }
        for e in found
    ]
    if as_json:
        print_json(rows)
    elif rows:
        _print_by_kind(rows)
    else:
        groups = " ".join(f"altcore-{k}s" for k in ([kind] if kind else KINDS))
        echo(f"nothing is installed; the first-party plugins come with: pip install {groups}")


def _print_by_kind(rows: list[dict[str, Any]]) -> None:
    """Print the plugins of each kind and distribution, with a line of help each."""
    for kind, of_kind in groupby(rows, lambda row: row["kind"]):
        flag = "plugin" if kind in HOOK_KINDS else kind
        later = ", or altcore report NAME RUN" if kind == "reporter" else ""
        command = "sweep run FILE" if kind == "executor" else "train"
        title(f"{kind}s: altcore {command} --{flag} NAME{later}")
        ordered = sorted(of_kind, key=lambda row: (row["distribution"], row["family"]))
        for (name, version), own in groupby(ordered, itemgetter("distribution", "version")):
            listed = list(own)
            paragraph(f"{name} {version}: {listed[0]['summary'] or 'no summary'}")
            width = max(len(row["name"]) for row in listed)
            for row in listed:
                text = f"{'family: ' * row['family']}{row['help']}"
                paragraph(f"  {row['name']:<{width}}  {text}".rstrip(), indent=width + 4)
                if row["duplicate"]:
                    echo("  ^ claimed twice: using this name is an error until it is claimed once")
        echo()


@plugins.command()
@click.argument("name")
@once("--kind", type=KIND, help="The kind, if two kinds share the name.")
@AS_JSON
def info(name: str, kind: str | None, as_json: bool) -> None:
    """Load one plugin, and show its hooks, needs and settings."""
    about = describe(name, (kind,) if kind else KINDS)
    if as_json:
        print_json(about)
        return
    for key in ("name", "kind", "help", "distribution", "version", "summary", "description"):
        if about.get(key):
            paragraph(f"{key:<13} {about[key]}", indent=14)
    for key in ("hooks", "needs", "requires"):
        if key in about:
            paragraph(f"{key:<13} {', '.join(about[key]) or 'none'}", indent=14)
    for key, value in about.get("format", {}).items():
        echo(f"{key:<13} {value}")
    if "settings" in about:
        echo("settings" if about["settings"] else "settings      none")
        for s in about["settings"]:
            paragraph(f"  {s['name']} ({s['type']}, default {s['default']}): {s['help']}", indent=4)


def describe(name: str, kinds: tuple[str, ...]) -> dict[str, Any]:
    """Load an entry, and return the facts about it."""
    from altcore.formats import get_format
    from altcore.hooks import describe_settings
    from altcore.registry import family_of

    found_in = [e.kind for e in entries() if e.kind in kinds and e.name == name]
    if not found_in and "format" in kinds and (family := family_of(name)):
        return {**_head(family), "name": name, "format": _format(get_format(name))}
    if len(set(found_in)) > 1:
        raise BadInput(f"{name!r} is {' and '.join(found_in)}: say which with --kind")
    entry = find(name, kinds)
    about = _head(entry)
    found = entry.load()
    if entry.kind == "format":
        if entry.is_family:
            _must_be_called(found, entry, "a function from a name to a Format")
            return {**about, "description": f"family: a format for each name like {entry.name}"}
        return {**about, "format": _format(get_format(name))}

    if entry.kind in HOOK_KINDS:
        from altcore.hooks import check_class, hooks_of

        check_class(found, entry)
        about |= {"hooks": hooks_of(found)}
        about |= {key: list(getattr(found, key, ())) for key in ("needs", "requires")}
    else:
        method = "run" if entry.kind == "executor" else "build"
        _must_be_called(getattr(found, method, None), entry, f"a class with a method {method}")
    first = (found.__doc__ or "").strip().splitlines()
    return {**about, "description": first[0] if first else "", "settings": describe_settings(found)}


def _must_be_called(found: Any, entry: Entry, wanted: str) -> None:
    if not callable(found):
        raise BadInput(f"{entry.kind} {entry.name} ({entry.origin}) is not {wanted}")


def _head(entry: Entry) -> dict[str, Any]:
    keys = ("name", "kind", "help", "distribution", "version", "summary")
    return {key: getattr(entry, key) for key in keys}


def _format(fmt: Any) -> dict[str, Any]:
    from altcore.cli.formats import element_of, precision_of

    element = element_of(fmt)
    return {
        "bits": fmt.bits,
        "precision": precision_of(element),
        "largest": element.values[-1],
        "smallest": element.smallest,
        "values": len(element.values),
    }


@plugins.command()
@AS_JSON
def check(as_json: bool) -> None:
    """Load every plugin, and name the broken ones (exit code 1).

    A broken plugin does not keep the others from being checked. Distributions whose metadata
    cannot be read are named, too, and groups of entry points that look like altcore's, and plugins
    with the name of a configuration key.
    """
    from altcore.cli.status import followed
    from altcore.config import check_is_no_key
    from altcore.hooks import circle_of

    rows: list[dict[str, Any]] = []
    requires: dict[str, list[str]] = {}
    for entry in followed(entries(), "checking", lambda entry: entry.name):
        try:
            check_is_no_key(entry)
            about = describe(entry.name, (entry.kind,))
            if entry.kind in HOOK_KINDS:
                requires[entry.name] = about["requires"]
            error = None
        # A plugin may raise anything when it is loaded. Check the others all the same.
        except BaseException as problem:
            if is_from_signal(problem):
                raise
            error = described(problem)
        rows.append(
            {"name": entry.name, "kind": entry.kind, "origin": entry.origin, "error": error}
        )
    for row in rows:
        if row["kind"] in HOOK_KINDS:
            row["error"] = row["error"] or circle_of(row["name"], requires) or None
    for bad in installed().problems:
        folder = Path(bad.path).parent.name
        rows.append({"name": bad.path, "kind": "metadata", "origin": folder, "error": bad.text})
    if as_json:
        print_json(rows)
    else:
        for row in rows:
            state = f"BROKEN: {' '.join(row['error'].splitlines())}" if row["error"] else "ok"
            echo(f"{row['kind']} {row['name']} ({row['origin']}): {state}")
    if any(row["error"] for row in rows):
        raise click.exceptions.Exit(1)
