"""Frames as Markdown tables, and intervals in words."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from altcore_reporters.columns import is_missing
from altcore_reporters.comparison import CONDITION, is_copy
from altcore_reporters.intervals import Interval
from altcore_reporters.markdown import caution, is_finite, rate, text

if TYPE_CHECKING:
    import pandas as pd

NOT_KNOWN = "n/a"


class Markdown(str):
    """Text that is Markdown already: a cell shows it as it is."""


SHARES = ("bit_stall_final", "overflow_final", "grad_sparsity")
"""Columns that are shown in percent."""


def frame_table(df: pd.DataFrame, columns: Iterable[str]) -> str:
    """Return those of the columns that a frame has as a Markdown table.

    Without the condition, if all rows have the same.
    """
    kept = [c for c in columns if c in df]
    if CONDITION in kept and df[CONDITION].nunique(dropna=False) < 2:
        kept.remove(CONDITION)
    return rows_table({c: row[c] for c in kept} for row in df.to_dict("records"))


def rows_table(rows: Iterable[Mapping[str, Any]]) -> str:
    """Return rows, which share their keys, as a Markdown table."""
    import pandas as pd

    shown = pd.DataFrame([{k: cell(v, k) for k, v in row.items()} for row in rows])
    # Cells are text already: tabulate would make numbers of names such as 1E5.
    return shown.to_markdown(index=False, disable_numparse=True)


def cell(value: Any, column: str = "") -> str:
    """Return a value as a table shows it: losses as by `decimals`, shares in percent."""
    if isinstance(value, Markdown):
        return value
    if is_missing(value):
        return NOT_KNOWN
    if is_finite(value) and not isinstance(value, bool):
        if column in SHARES:
            return rate(value)
        is_whole = float(value).is_integer() and not column.endswith("loss")
        return f"{value:.0f}" if is_whole else decimals(value)[0]
    return text(value)


def decimals(*values: float, places: int = 4) -> list[str]:
    """Return numbers with some decimals; if all are so small that these tell little, in digits.

    >>> decimals(2.5, 0.0001), decimals(0.0000312, -0.0004), decimals(0.0)
    (['2.5000', '0.0001'], ['3.12e-05', '-0.0004'], ['0.0000'])
    """
    is_small = 0 < max(map(abs, values)) < 10 ** (1 - places)
    return [f"{value:.4g}" if is_small else f"{value:.{places}f}" for value in values]


def interval_text(found: Interval, digits: int = 4) -> Markdown:
    """Return a mean with its interval, or what is missing for one."""
    if math.isnan(found.mean):
        return Markdown(NOT_KNOWN)
    if math.isinf(found.high):
        why = "no spread over the seeds" if found.n > 1 else "one seed"
        return Markdown(f"{decimals(found.mean, places=digits)[0]} ({why})")
    mean, low, high = decimals(found.mean, found.low, found.high, places=digits)
    return Markdown(f"{mean} [{low}, {high}]")


def p_text(p: float) -> str:
    """Return a p value; only 0 itself looks like it."""
    return "under 0.0001" if 0 < p < 5e-5 else cell(p)


def bullets(lines: Iterable[str]) -> str:
    """Return a Markdown list."""
    return "\n".join(f"- {line}" for line in lines)


def listed(names: Iterable[str]) -> str:
    """Return names as a sentence lists them."""
    *first, last = map(text, names)
    return f"{', '.join(first)} and {last}" if first else last


def count(n: int, what: str) -> str:
    """Return a number with a noun.

    >>> count(1, "run"), count(2, "run")
    ('1 run', '2 runs')
    """
    return f"{n} {what}{'' if n == 1 else 's'}"


def runs_text(df: pd.DataFrame) -> str:
    """Return how many runs a frame has, and of how many seeds, if some seed was run again."""
    seeds = df["seed"].dropna() if "seed" in df else []
    repeated = len(seeds) and seeds.nunique() < len(seeds)
    of = f" of {count(seeds.nunique(), 'seed')}" if repeated else ""
    return f"{count(len(df), 'run')}{of}"


def run_link(row: Mapping[str, Any]) -> str:
    """Return the name of a frame's run, or its id, as a link to its page if it has one."""
    named = [row.get("name"), row.get("run_id")]
    name = next((cell(n) for n in named if isinstance(n, str)), NOT_KNOWN)
    url = row.get("run_url")
    is_web = isinstance(url, str) and urlsplit(url).scheme in ("http", "https")
    return f"[{name}]({quote(url, safe=':/?#=&%+~@,;')})" if is_web else name


def copies_text(df: pd.DataFrame, column: str = "format") -> str:
    """Name the rows of a frame that are copies of another row's run, if there are any."""
    copies = df[is_copy(df, column)]
    if not len(copies):
        return ""
    names = listed(row.get("name", row["run_id"]) for row in copies.to_dict("records"))
    return f"Copies of other runs here, which count once: {names}."


def head(title: str, about: str, problems: Sequence[str] = ()) -> list[str]:
    """Return a report's title, the line that says when and of what it was made, and its caution.

    ``problems`` are those of `altcore.plugin.problems_of`.
    """
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return [f"# {title}", f"Generated {now} from {about}.", *caution(problems)]
