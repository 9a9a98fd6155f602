"""The numbers behind pictures of runs: plain functions from run records to what is drawn.

The page draws them as SVG, `altcore_reporters.plot` with matplotlib. What was not measured is not
there: no function here fills a gap.
"""

from altcore_reporters.pictures.curves import (
    POINTS,
    Band,
    Curve,
    band_of,
    curve_of,
    smoothed,
    thinned,
)
from altcore_reporters.pictures.groups import Difference, Group, differences, grouped
from altcore_reporters.pictures.layers import LAYER_MEASURES, HeatMap, heat_map, heat_maps
from altcore_reporters.pictures.marks import Mark, marks_of
from altcore_reporters.pictures.values import ValueHistogram, value_histograms

__all__ = [
    "LAYER_MEASURES",
    "POINTS",
    "Band",
    "Curve",
    "Difference",
    "Group",
    "HeatMap",
    "Mark",
    "ValueHistogram",
    "band_of",
    "curve_of",
    "differences",
    "grouped",
    "heat_map",
    "heat_maps",
    "marks_of",
    "smoothed",
    "thinned",
    "value_histograms",
]
