"""Which layers a search measures: those that a plan rests on and that are only guessed, and what might be faster."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace

from tuner.measure import Measurer
from znni.candidate import Solved
from znni.predict import Predictor
from znni.solve import Option

#: A node that takes less than this share of a plan is not worth measuring alternatives for.
_NEGLIGIBLE = 0.02
#: Guesses of each primitive that are measured, the best ones.
_TRIED = 2


class LayerMeasurements:
    """Measures layers and tells the predictors.

    Parameters
    ----------
    measurer : Measurer
    predictors : mapping of thread count to Predictor
    tell : callable of str
        Called after each measurement with what was measured.
    """

    def __init__(self, measurer: Measurer, predictors: Mapping[int, Predictor], tell: Callable[[str], None]):
        self._measurer, self._predictors, self._tell = measurer, predictors, tell

    def missing(self, solved: Solved, may_go_on: Callable[[], bool]) -> bool:
        """Measure what the plan's layers are only guessed to take, as long as there is time; whether anything was."""
        threads, ran = solved.candidate.threads, False
        for call, option in zip(solved.calls, solved.solution.options, strict=True):
            if option.basis != "model" or option.seconds < _NEGLIGIBLE * solved.solution.seconds:
                continue
            if may_go_on():
                once = replace(option, seconds=option.seconds / call.repeats)
                row = self._measurer.layer(call.node.layer, call.in_shape, once, threads)
                if row:
                    self._predictors[threads].add(row)
                    ran = True
                self._tell(f"{call.node.name} by {option.choice.primitive}")
        return ran

    def alternatives(self, solved: Solved, may_go_on: Callable[[], bool], holds: Callable[[Option], bool]) -> None:
        """Measure, for a plan's patch, the options of each node that may be fastest, the longest node first.

        Of each primitive the best guesses, in the layouts that were chosen, as long as there is time; only those that
        `holds` says the limits hold.
        """
        predictor = self._predictors[solved.candidate.threads]
        ranked = sorted(zip(solved.calls, solved.solution.options, strict=True), key=lambda pair: -pair[1].seconds)
        for call, chosen in ranked:
            if chosen.seconds < _NEGLIGIBLE * solved.solution.seconds:
                break
            layer, shape = call.node.layer, call.in_shape
            tried: Counter[str] = Counter()
            for option in sorted(predictor.options(layer, shape), key=lambda option: option.seconds):
                name = option.choice.primitive
                slow = option.seconds * call.repeats > 2 * chosen.seconds
                other = (option.takes, option.gives) != (chosen.takes, chosen.gives)
                if slow or other or option.basis == "measured" or tried[name] == _TRIED or not holds(option):
                    continue
                if not may_go_on():
                    return
                tried[name] += 1
                row = self._measurer.layer(layer, shape, option, solved.candidate.threads)
                if row:
                    predictor.add(row)
                self._tell(f"{call.node.name} by {name}")
