"""``altcore formats``: the values of formats, in figures and pictures."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import click

from altcore.builtin_types import digits
from altcore.cli import options
from altcore.cli.options import AS_JSON, Group, once, print_json, runs_dir_option, tell_left_out
from altcore.cli.status import followed
from altcore.cli.terminal import echo, say
from altcore.errors import BadInput, described
from altcore.formats import AnyFormat, BlockFormat, Format, get_format
from altcore.output_files import write_output
from altcore.registry import entries, load_family
from altcore.signals import is_from_signal

WIDTH = 96
"""Columns of a picture in the terminal."""
BLOCK_COLUMNS = (
    *("name", "bits", "element", "precision", "largest", "smallest"),
    *("block", "rule", "scale", "largest_scale", "smallest_scale"),
)
"""The columns of ``list`` for block formats."""


@click.group(cls=Group)
def formats() -> None:
    """Show the values of number formats."""


def facts(fmt: AnyFormat) -> dict[str, Any]:
    """Return the figures of a format.

    For a block format, ``bits`` includes an element's share of the scale. The other figures are
    those of its elements under a scale of 1, and those of blocks and scales.
    """
    element = element_of(fmt)
    lowest, largest = element.values[0], element.values[-1]
    # The ratio of the two may be beyond float64.
    binades = math.log2(largest) - math.log2(element.smallest)
    about = {
        "name": fmt.name,
        "bits": fmt.bits,
        "precision": precision_of(element),
        "lowest": lowest,
        "largest": largest,
        "smallest": element.smallest,
        "range_db": round(20 * math.log10(2) * binades, 1),
        "range_binades": round(binades, 1),
        "values": len(element.values),
        "nan_codes": len(element.nan_codes),
        "inf_codes": len(element.inf_codes),
    }
    return {**about, **_block_facts(fmt)} if isinstance(fmt, BlockFormat) else about


def _block_facts(fmt: BlockFormat) -> dict[str, Any]:
    scale, largest, smallest = _scales(fmt)
    return {
        "element": fmt.element.name,
        "block": f"{fmt.block}x{fmt.block}" if fmt.is_square else str(fmt.block),
        "rule": fmt.rule,
        "scale": scale,
        "largest_scale": largest,
        "smallest_scale": smallest,
    }


def _scales(fmt: BlockFormat) -> tuple[str, float, float]:
    """Return the name, the largest and the smallest value of the scales of blocks."""
    if fmt.scale_format is not None:
        return fmt.scale_format.name, fmt.scale_format.values[-1], fmt.scale_format.smallest
    if fmt.rule == "amax":
        return "float32", (2 - 2.0**-23) * 2.0**127, 2.0**-128
    exponent = 126 if fmt.rule == "power-of-two" else 127
    return "E8M0", 2.0**exponent, 2.0**-exponent


def element_of(fmt: AnyFormat) -> Format:
    """Return the format of a block format's elements, or the format itself."""
    return fmt.element if isinstance(fmt, BlockFormat) else fmt


def precision_of(fmt: Format) -> int | None:
    """Return a format's significant bits; for a table, if its values are a floating-point format's.

    >>> precision_of(get_format("binary8p4ue")), precision_of(get_format("NF4"))
    (4, None)
    """
    if fmt.precision is not None:
        return fmt.precision
    positive = [v for v in fmt.values if v > 0]
    least = math.frexp(positive[0])[1] - 1
    odd = (n // (n & -n) for n in (v.as_integer_ratio()[0] for v in positive))
    precision = max(n.bit_length() for n in odd)
    hidden = 1 << (precision - 1)
    if len(positive) <= hidden:  # subnormal values only, and one more
        return None
    for code, value in enumerate(positive, start=1):
        exponent, significand = divmod(code, hidden)
        significand += hidden * (exponent > 0)
        if value != math.ldexp(significand, least + max(exponent - 1, 0)):
            return None
    return precision


@formats.command("list")
@AS_JSON
def list_(as_json: bool) -> None:
    """List the installed formats with their figures."""
    tell_left_out(again=True)
    found = [e for e in entries() if e.kind == "format"]
    rows, families = [], []
    for name in sorted({e.name for e in found if not e.is_family}):
        with _left_out_if_broken(name):
            rows.append(facts(get_format(name)))
    for entry in (e for e in found if e.is_family):
        with _left_out_if_broken(entry.name):
            load_family(entry)
            families.append(entry.name)
    if as_json:
        print_json(rows)
        return
    _print_table([row for row in rows if "block" not in row])
    in_blocks = [row for row in rows if "block" in row]
    if in_blocks:
        echo("\nin blocks that share a scale (the figures are those of the elements):")
        _print_table([{k: row[k] for k in BLOCK_COLUMNS} for row in in_blocks])
    if families:
        echo(f"\nand any name of the families {', '.join(sorted(families))}")


@contextmanager
def _left_out_if_broken(name: str) -> Iterator[None]:
    """Name a format with which anything is wrong; the others are listed all the same."""
    try:
        yield
    except BaseException as error:
        if is_from_signal(error):
            raise
        kind = "" if isinstance(error, BadInput) else f"format {name}: "
        say(f"{kind}{described(error)}: left out")


def _print_table(rows: list[dict[str, Any]]) -> None:
    if not rows:
        echo(
            "no format is installed: pip install altcore-formats (in a clone of altcore: "
            "./plugins/formats)"
        )
        return
    cells = [{k: _cell(v) for k, v in row.items()} for row in rows]
    width = {k: max(len(k), *(len(c[k]) for c in cells)) for k in cells[0]}
    echo("  ".join(f"{k:>{width[k]}}" for k in width))
    for cell in cells:
        echo("  ".join(f"{cell[k]:>{width[k]}}" for k in width))


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return digits(value) if isinstance(value, float) else str(value)


@formats.command()
@click.argument("name")
@AS_JSON
def show(name: str, as_json: bool) -> None:
    """Show one format: its figures, its values, and where they lie.

    NAME may be a .yaml file. For a block format, the values and pictures are those of its
    elements under a scale of 1.
    """
    about = facts(get_format(name))
    fmt = element_of(get_format(name))
    if as_json:
        table = {"values": list(fmt.values), "codes": {"nan": fmt.nan_codes, "inf": fmt.inf_codes}}
        print_json({**about, **table})
        return
    for key, value in about.items():
        echo(f"{key:<14} {_cell(value)}")
    of = "the elements' values" if "block" in about else "the values"
    echo(f"\nwhere {of} lie, {digits(_start(fmt))} to {digits(fmt.values[-1])} and by binade:")
    echo(linear_picture(fmt))
    echo(binade_picture(fmt))
    shown = fmt.values if len(fmt.values) <= 512 else fmt.values[: 512 // 2]
    echo("\nvalues:")
    cells = [digits(v) for v in shown]
    width = max(map(len, cells))
    columns = max(1, (WIDTH + 2) // (width + 2))
    for start in range(0, len(cells), columns):
        echo("  ".join(f"{c:>{width}}" for c in cells[start : start + columns]))
    if len(shown) < len(fmt.values):
        echo(f"... {len(fmt.values) - len(shown)} more; --json gives all")


def is_symmetric(fmt: Format) -> bool:
    """Return whether the negative of each value is a value, too."""
    return fmt.values == tuple(-v for v in reversed(fmt.values))


def _start(fmt: Format) -> float:
    """Return where a linear picture begins."""
    return 0.0 if is_symmetric(fmt) else min(0.0, fmt.values[0])


def linear_picture(fmt: Format) -> str:
    """Return a line whose marks are the values, on a linear axis; the nonnegative ones suffice
    if the format is symmetric.

    >>> from altcore.formats import table_format
    >>> linear_picture(table_format("t", [0, 1]))[0::95]
    '||'
    """
    cells = [" "] * WIDTH
    start = _start(fmt)
    for value in fmt.values:
        if value >= start:
            share = (value - start) / (fmt.values[-1] - start)
            cells[round(share * (WIDTH - 1))] = "|"
    return "".join(cells)


def binade_picture(fmt: Format) -> str:
    """Return how many values each binade holds, as a line of digits (``+`` for 10 and more).

    A format that is not symmetric has a line for its negative values before that.
    """
    lines = [_binades([v for v in fmt.values if v > 0])]
    if fmt.signed and not is_symmetric(fmt):
        lines.insert(0, f"negative: {_binades([-v for v in fmt.values if v < 0])}")
    return "\n".join(lines)


def _binades(magnitudes: Sequence[float]) -> str:
    counts: dict[int, int] = {}
    for value in magnitudes:
        binade = math.frexp(value)[1] - 1
        counts[binade] = counts.get(binade, 0) + 1
    low, high = min(counts), max(counts)
    digits = [counts.get(b, 0) for b in range(low, high + 1)]
    line = "".join("+" if d >= 10 else str(d) for d in digits)
    return f"2^{low} {line} 2^{high}"


COMPARED = (("dB", "sqnr_db", ".2f"), ("over", "overflow", ".2g"), ("under", "underflow", ".2g"))
"""The columns at each of the two scales: title, key and digits. A row fits a terminal."""


@formats.command()
@click.argument("names", nargs=-1, required=True)
@once(
    "--on",
    "data",
    default="normal,laplace,t5",
    show_default=True,
    help="Data, separated by commas or spaces.",
)
@runs_dir_option
@once("--plot", help="Also draw the formats into this SVG file.")
@AS_JSON
def compare(
    names: tuple[str, ...], data: str, runs_dir: str, plot: str | None, as_json: bool
) -> None:
    """Compare the SQNR, overflow and underflow of formats on data.

    Each format is scaled in two ways: by the best scale, and by the data's amax. Data are normal,
    uniform, laplace, t5 (Student), FILE.npy, or the name of a run. A block format computes its own
    scales, from the amax of each block along the last axis. It has figures at amax only, and
    its overflow is the share that its scale rule clips.

    Distributions are computed exactly: at the best scale with all of their tails; at amax as a
    tensor of 2^18 numbers whose largest magnitude is the median one.
    """
    from altcore.cli.log import configure
    from altcore.study import read_data, sqnr_of

    configure()
    found = [get_format(name) for name in options.names(names, "NAMES")]
    if plot is not None:
        check_picture(plot, "--plot")
    on = {what: read_data(what, runs_dir) for what in options.names([data], "--on")}
    rows = []
    for what, fmt in followed([*product(on, found)], "measuring", lambda pair: pair[1].name):
        rows.append({"format": fmt.name, "data": what, **sqnr_of(fmt, on[what])})
    if plot is not None:
        write_svg(Path(plot), found)
    if as_json:
        print_json(rows)
        return
    _print_table(
        [
            {
                "format": r["format"],
                "data": r["data"],
                **{
                    f"{title} {at}": format(r[at][key], digits) if r[at] else "n/a"
                    for at in ("best", "amax")
                    for title, key, digits in COMPARED
                },
            }
            for r in rows
        ]
    )


@formats.command("plot")
@click.argument("names", nargs=-1, required=True)
@once("--out", default="formats.svg", show_default=True, help="SVG file to write.")
@AS_JSON
def plot_(names: tuple[str, ...], out: str, as_json: bool) -> None:
    """Draw where the values of formats lie, into an SVG file."""
    check_picture(out, "--out")
    write_svg(Path(out), [get_format(name) for name in options.names(names, "NAMES")])
    if as_json:
        print_json({"path": out})
    else:
        echo(out)


def check_picture(path: str, option: str) -> None:
    """Raise `BadInput` unless the path is that of an SVG file."""
    if not path.endswith(".svg"):
        raise BadInput(f"{option} {path}: the picture is SVG: give a name that ends in .svg")


def write_svg(path: Path, found: Sequence[AnyFormat]) -> None:
    """Write the positive values of each format as marks on one base-2 logarithmic axis.

    If a format is not symmetric, its negative values are in the lower half of its row. A block
    format is drawn by the values of its elements under a scale of 1.
    """
    from html import escape

    rows = [_marks(element_of(f)) for f in found]
    logs = [m for row in rows for half in row for m in half]
    low, high = min(logs), max(logs)
    span, left, width, row_height = max(high - low, 1.0), 110, 860, 34
    height = row_height * len(found) + 50
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + width + 40}" height="{height}" '
        'font-family="sans-serif" font-size="13">',
        "<title>Where the values of the formats lie; negative ones below, if they differ</title>",
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    for i, (fmt, (upper, lower)) in enumerate(zip(found, rows, strict=True)):
        y = row_height * i + 12
        parts.append(f'<text x="8" y="{y + 15}">{escape(fmt.name)}</text>')
        size = 10 if lower else 20
        for marks, top, color in ((upper, y, "#1f5fa8"), (lower, y + 10, "#a8471f")):
            at = sorted({round(left + (v - low) / span * width, 2) for v in marks})
            lines = "".join(f"M{x} {top}v{size}" for x in at)
            if lines:
                parts.append(f'<path d="{lines}" stroke="{color}" stroke-width="0.8"/>')
    step = max(1, math.ceil(span / 12))
    base = row_height * len(found) + 18
    for power in range(math.ceil(low), math.floor(high) + 1, step):
        x = left + (power - low) / span * width
        parts.append(f'<path d="M{x:.1f} {base - 6}v6" stroke="black"/>')
        parts.append(f'<text x="{x:.1f}" y="{base + 16}" text-anchor="middle">2^{power}</text>')
    parts.append("</svg>")
    write_output(path, ("\n".join(parts) + "\n").encode())


def _marks(fmt: Format) -> tuple[list[float], list[float]]:
    """Return base-2 logarithms: of the positive values, and of negative ones if those differ."""
    negative = [] if is_symmetric(fmt) else [math.log2(-v) for v in fmt.values if v < 0]
    return [math.log2(v) for v in fmt.values if v > 0], negative
