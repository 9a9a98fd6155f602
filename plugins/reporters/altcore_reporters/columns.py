"""The columns of other people's frames: there, once each, and of what they must hold."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from altcore.plugin import BadInput, nearest

if TYPE_CHECKING:
    import pandas as pd

WIDTH = 60
"""Characters of a value that a message shows."""


def need(df: pd.DataFrame, *columns: str) -> None:
    """Raise `BadInput` for what is no frame, and for a column that a frame with rows lacks."""
    import pandas as pd

    if not isinstance(df, pd.DataFrame):
        raise BadInput(f"{_shown(df)} is not a frame")
    if twice := list(df.columns[df.columns.duplicated()]):
        raise BadInput(f"the frame has several columns {twice[0]!r}")
    for column in columns:
        if len(df) and column not in df:
            known = [str(c) for c in df]
            raise BadInput(f"the frame has no column {column!r}", meant=nearest(column, known))


def need_single(df: pd.DataFrame, *columns: str) -> None:
    """Raise `BadInput` if one of the columns is there and holds lists, mappings or the like."""
    import pandas as pd

    for column in (c for c in columns if c in df):
        if odd := [v for v in df[column] if not pd.api.types.is_scalar(v)]:
            raise BadInput(f"{column} is {_shown(odd[0])}, and not a single value")


def numbers(df: pd.DataFrame, column: str) -> list[float]:
    """Return a column as numbers, NaN for those that are missing; text may be a number, too.

    Raises:
        BadInput: if it holds anything else.
    """
    found = []
    for value in df[column]:
        try:
            found.append(math.nan if is_missing(value) else float(value))
        except (TypeError, ValueError, OverflowError) as error:
            raise BadInput(f"{column} is {_shown(value)}, and not a number") from error
    return found


def labels(df: pd.DataFrame, column: str, missing: str) -> pd.Series:
    """Return a column as text, with what stands for a missing value."""
    import pandas as pd

    named = [missing if is_missing(value) else str(value) for value in df[column]]
    return pd.Series(named, index=df.index, dtype=object)


def is_missing(value: Any) -> bool:
    """Whether a cell of a frame has no value: None, NaN, NaT or NA."""
    import pandas as pd

    return bool(pd.isna(value)) if pd.api.types.is_scalar(value) else False


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= WIDTH else f"{text[: WIDTH - 3]}..."
