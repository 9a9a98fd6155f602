"""What it takes to repeat a study, and what every number of it is of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from altcore_reporters.study_pages.document import Bullets, Section
from altcore_reporters.study_pages.words import digits

About = Mapping[str, Any]


def section(about: About) -> Section:
    """Return what it takes to repeat a study, as a section of its page."""
    told = [f"**{name[0].upper()}{name[1:]}**: {fact}" for name, fact in needed(about)]
    return Section("Repeat", [Bullets(told)])


def needed(about: About) -> list[tuple[str, str]]:
    """Return what it takes to repeat a study: each fact with its name."""
    return [(name, " ".join(fact.splitlines())) for name, fact in _needed(about) if fact]


def facts(about: About) -> dict[str, object]:
    """Return what every row of numbers is of, for a file that holds those of several studies."""
    return {
        "study": about["study"],
        "page": about["page"],
        "metric": about.get("metric", "train"),
        "steps": about["steps"],
        "altcore": about["altcore"],
        "torch": about["torch"],
    }


def _needed(about: About) -> Iterator[tuple[str, str]]:
    yield "command", f"`{about['shell']}`"
    yield "recipes", "; ".join(_recipes(about))
    yield "versions", f"altcore {about['altcore']}, torch {about['torch']}"
    yield "data and model", f"{about['workload']}; {_listed(about['workload_facts'])}"
    rate = digits(about["learning_rate"])
    yield "training", f"{about['optimizer']}, learning rate {rate}; {_listed(about['training'])}"


def _recipes(about: About) -> Iterator[str]:
    if "recipe" in about:
        yield f"{about['recipe']} with {about['format']}"
        return
    if about["formats"]:
        yield f"{', '.join(about['recipes'])} with {', '.join(about['formats'])}"
    for name, recipe in about["arms"].items():
        yield f"{name}: {recipe}"
    for name, recipe in about["ablate"].items():
        yield f"{name}: {recipe}, and without each of its ingredients"


def _listed(known: Mapping[str, Any]) -> str:
    """Return what is known in a line, without what has parts of its own."""
    plain = {key: fact for key, fact in known.items() if not isinstance(fact, dict | list)}
    return ", ".join(f"{key}: {fact}" for key, fact in plain.items())
