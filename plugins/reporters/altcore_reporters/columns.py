"""The columns that frames of other people must have."""

from __future__ import annotations

from typing import TYPE_CHECKING

from altcore.plugin import BadInput, nearest

if TYPE_CHECKING:
    import pandas as pd


def need(df: pd.DataFrame, *columns: str) -> None:
    """Raise `BadInput` for a column that a frame with rows lacks."""
    for column in columns:
        if len(df) and column not in df:
            known = [str(c) for c in df]
            raise BadInput(f"the frame has no column {column!r}", meant=nearest(column, known))
