"""When a run is evaluated, and who is told what was found."""

from __future__ import annotations

from fractions import Fraction

from attrs import define, field

from altcore.engine import schedule
from altcore.engine.epochs import evaluation_interval
from altcore.engine.evaluation import evaluate, is_better, warn_of_nonfinite
from altcore.engine.leaving import Leaving
from altcore.engine.run_state import RunState
from altcore.engine.saving import Saving
from altcore.engine.state import Step
from altcore.engine.summarizing import unigram_entropy
from altcore.errors import Interrupted
from altcore.runs import METRICS, RunDirectory


@define(eq=False)
class Evaluating:
    """Evaluates one run."""

    state: RunState
    directory: RunDirectory
    saving: Saving
    leaving: Leaving
    interval: int | Fraction = field(init=False)

    def __attrs_post_init__(self) -> None:
        run = self.state.run
        self.interval = evaluation_interval(run.config, run.epoch)

    def is_due(self, step: Step) -> bool:
        """Whether an evaluation follows a step, even if the run does not end with it."""
        return schedule.is_due(self.interval, step.index)

    def evaluate(self, step: Step) -> bool:
        """Measure loss and measures of the validation split, and tell; returns if it is best."""
        run, history, dispatch = self.state.run, self.state.history, self.state.dispatch
        self.state.record.flush()
        self.saving.check_data()
        self.saving.has_finite_weights()
        try:
            found = evaluate(run, self.state.ranks, self.leaving.if_asked)
        except Interrupted:
            self.saving.save()  # whoever goes on from it evaluates
            raise
        before, history.evaluation = history.evaluation, {**step.place(), **found}
        warn_of_nonfinite(run, step, history.evaluation, before)
        # One that only the run's end asks for must change nothing if the run goes on.
        is_asked = self.is_due(step)
        if is_asked:
            self.state.detector.evaluated(step.index, history.evaluation[run.config.monitor])
        history.first_evaluation = history.first_evaluation or history.evaluation
        self.directory.append(METRICS, history.evaluation)
        acting, line = None if is_asked else False, history.evaluation
        dispatch.call("on_eval", acting=acting, run=run, step=step, metrics=line)
        is_best = is_better(run.config, history.evaluation, history.best)
        if is_best:
            history.best = history.evaluation
        return is_best

    def evaluate_start(self) -> None:
        """Measure where the run begins, for its verdict, if the data's entropy does not say it."""
        run = self.state.run
        if unigram_entropy(self.saving.ending.facts) is None:
            self.state.history.first_evaluation = {"step": 0, **evaluate(run, self.state.ranks)}
