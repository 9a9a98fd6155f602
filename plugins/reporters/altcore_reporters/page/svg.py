"""Numbers as the data of SVG paths: relative, and in whole numbers, which keeps pages small."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TypeVar

WIDTH, HEIGHT = 2000, 400
"""The units of a plot: x grows to the right, y downwards."""
CELL = 10
"""The side of a heat map's cell."""

Place = tuple[float, float]
"""x and y in 0..1, y upwards; y is NaN where a line breaks."""
T = TypeVar("T", bound=tuple[float, ...])


def line(places: Iterable[Place]) -> str:
    """Return a line, broken where y is NaN.

    >>> line([(0, 0), (0.5, 1), (1, 0.5)])
    'M0 400l1000-400 1000 200'
    """
    return "".join(_piece(piece) for piece in _pieces(places))


def dots(places: Iterable[Place]) -> str:
    """Return lines of no length, which round caps make dots.

    >>> dots([(0, 0), (0.5, 1)])
    'M0 400h0M1000 0h0'
    """
    units = (_unit(place) for place in places if math.isfinite(place[1]))
    return "".join(f"M{x} {y}h0" for x, y in units)


def area(places: Sequence[tuple[float, float, float]]) -> str:
    """Return the area between y low and y high along x, broken where either is NaN.

    >>> area([(0, 0, 1), (1, 0.25, 0.5)])
    'M0 0l2000 200v100l-2000 100z'
    """
    text = ""
    for own in _pieces(places):
        edge = [(x, high) for x, _, high in own] + [(x, low) for x, low, _ in reversed(own)]
        text += f"{_piece(edge)}z"
    return text


def bars(edges: Sequence[float], heights: Sequence[float]) -> str:
    """Return an outline of bars that stand side by side, from edge to edge.

    >>> bars([0, 0.5, 1], [1, 0.5])
    'M0 400v-400h1000v200h1000v200z'
    """
    x, y = _unit((edges[0], 0.0))
    text = f"M{x} {y}"
    for edge, height in zip(edges[1:], heights, strict=True):
        right, top = _unit((edge, height))
        text += f"v{top - y}h{right - x}"
        x, y = right, top
    return f"{text}v{HEIGHT - y}z"


def rules(places: Iterable[float]) -> str:
    """Return vertical lines at each x in 0..1."""
    return "".join(f"M{round(x * WIDTH)} 0v{HEIGHT}" for x in places)


def cells(levels: Sequence[Sequence[int | None]], level: int) -> str:
    """Return the cells of one level, those side by side as one.

    >>> cells([[1, 1, 0], [None, 1, 1]], 1)
    'M0 0h20v10h-20zM10 10h20v10h-20z'
    """
    text = ""
    for r, row in enumerate(levels):
        c = 0
        while c < len(row):
            n = 0
            while c + n < len(row) and row[c + n] == level:
                n += 1
            if n:
                text += f"M{c * CELL} {r * CELL}h{n * CELL}v{CELL}h-{n * CELL}z"
            c += n or 1
    return text


def _pieces(places: Iterable[T]) -> list[list[T]]:
    """Split places where a number of one is NaN."""
    pieces: list[list[T]] = [[]]
    for place in places:
        if all(map(math.isfinite, place)):
            pieces[-1].append(place)
        elif pieces[-1]:
            pieces.append([])
    return [piece for piece in pieces if piece]


def _piece(places: Sequence[Place]) -> str:
    (x, y), *rest = map(_unit, places)
    text, command = f"M{x} {y}", ""
    for right, down in rest:
        dx, dy = right - x, down - y
        x, y = right, down
        if dx == dy == 0:
            continue
        if dx == 0:
            text, command = f"{text}v{dy}", "v"
        else:
            gap = "l" if command != "l" else ("" if dx < 0 else " ")
            text, command = f"{text}{gap}{dx}{'' if dy < 0 else ' '}{dy}", "l"
    return text if rest else f"{text}h0"


def _unit(place: Place) -> tuple[int, int]:
    # What lies far outside is cut off by the plot's edge; so far is enough.
    x, y = (min(3.0, max(-2.0, v)) for v in place)
    return round(x * WIDTH), round((1 - y) * HEIGHT)
