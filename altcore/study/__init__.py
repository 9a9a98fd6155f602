"""Studies: many runs that answer one question, by public calls of the engine only.

`explain` asks where a format breaks, `compare` how formats and optimizers compare. Both train on
identical batches, pair every run by seed with a float32 twin, and give intervals. `sqnr` says how
much noise a format adds to a distribution.
"""

from altcore.study.answer import SHOWN, answers_in, load_answer, render
from altcore.study.commands import default_recipe, run_compare, run_explain
from altcore.study.contenders import Entrants
from altcore.study.options import STUDIES, Options
from altcore.study.own import Own
from altcore.study.sqnr import read_data, sqnr_of

__all__ = [
    "SHOWN",
    "STUDIES",
    "Entrants",
    "Options",
    "Own",
    "answers_in",
    "default_recipe",
    "load_answer",
    "read_data",
    "render",
    "run_compare",
    "run_explain",
    "sqnr_of",
]
