"""A sweep asked for on the command line: options that do what a sweep file does, or add to one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from attrs import evolve, frozen

from altcore.config import check_name
from altcore.errors import BadInput, Source
from altcore.sweep.joining import joined, joined_keys, joined_variants
from altcore.sweep.sweep_file import SweepFile, check_asks, read_sweep
from altcore.yaml_files import SourcedDict, flow_parts, load_yaml


@frozen(kw_only=True)
class Given:
    """The options, as they were typed."""

    name: str | None = None
    params: Sequence[str] = ()
    """``KEY=VALUE,VALUE``: a key of the grid."""
    variants: Sequence[str] = ()
    """``NAME`` or ``NAME:KEY=VALUE,KEY=VALUE``."""
    sets: Sequence[str] = ()
    """``KEY=VALUE``: a key of the base."""
    seeds: str | None = None
    """A number, or seeds with commas between them and after the last one."""


def asked_sweep(file: str | None, given: Given) -> SweepFile:
    """Return the sweep of a file, with what options add to it or give in place of it.

    Raises:
        BadInput: with the option.
    """
    if file is None and given.name is None:
        problem = "a sweep file or a name for the sweep is needed"
        raise BadInput(problem, hint="give FILE or --name NAME")
    sweep = SweepFile() if file is None else read_sweep(file)
    if given != Given(name=given.name):
        check_asks(sweep)
    if given.name is not None:
        sweep = evolve(sweep, name=check_name(given.name, "--name"))
    grid = dict(_pair(text, "--param", is_list=True) for text in given.params)
    base = dict(_pair(text, "--set") for text in given.sets)
    variants = dict(map(_variant, given.variants))
    for option, typed, found in (
        ("--param", given.params, grid),
        ("--set", given.sets, base),
        ("--variant", given.variants, variants),
    ):
        if len(found) < len(typed):
            raise BadInput("a key is given twice", key=option)
    seeds: dict[str, Any] = {}
    if given.seeds is not None:
        is_list = "," in given.seeds
        seeds = {"seeds": _value(given.seeds, "--seeds", "seeds", is_list=is_list)}
    return evolve(
        sweep,
        base=joined_keys(sweep.base, _typed(base, "--set")),
        grid=joined(sweep.grid, _typed(grid, "--param")),
        variants=joined_variants(sweep.variants, _typed(variants, "--variant")),
        **seeds,
    )


def _pair(text: str, option: str, *, is_list: bool = False) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        form = "KEY=VALUE,VALUE" if is_list else "KEY=VALUE"
        raise BadInput(f"{form} is needed", key=option, part=text)
    return key, _value(value, option, key, is_list=is_list)


def _value(text: str, option: str, key: str, *, is_list: bool = False) -> Any:
    return load_yaml(f"[{text}]" if is_list else text, Source(flag=option), key)


def _variant(text: str) -> tuple[str, SourcedDict]:
    name, _, rest = text.partition(":")
    keys = [_pair(part, "--variant") for part in flow_parts(rest) if part]
    if len(dict(keys)) < len(keys):
        raise BadInput("a key is given twice", key="--variant", part=text)
    return name, _typed(dict(keys), "--variant")


def _typed(keys: Mapping[str, Any], option: str) -> SourcedDict:
    flag = Source(flag=option)
    return SourcedDict(keys, flag, dict.fromkeys(keys, flag))
