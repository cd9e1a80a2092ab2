"""Which config of a primitive competes: each is timed for a moment, likeliest first, as far as the time goes."""

from __future__ import annotations

import time
from collections.abc import Sequence

from tuner.contender import layer_spec
from tuner.contest import HOPELESS, Contender, middle
from znni.layers import Layer, Shape
from znni.layouts import BLOCKED, with_layouts
from znni.predict import Predictor
from znni.primitives import Primitive, config_key

#: Configs of one primitive that are timed at most, and of those the best that are timed in further layouts.
MOST_SCOUTED, MOST_AGAIN = 16, 3
#: A config that the cost model thinks so many times slower than the primitive's best is not timed.
_HOPELESS_GUESS = 4.0
#: Seconds that preparing, or one turn, may take.
TIMEOUT_S = 600.0
#: A turn of a config lasts about so long, in whole calls.
_TURN_S = 0.05


def layout_pairs(primitive: Primitive) -> list[tuple[str, str]]:
    """The layouts in which a primitive competes: those that it keeps, blocked first; all, where it keeps none."""
    kept = [pair for pair in primitive.layouts if pair[0] == pair[1]]
    return sorted(kept or primitive.layouts, key=lambda pair: pair != (BLOCKED, BLOCKED))


def likely_configs(primitive: Primitive, layer: Layer, shape: Shape, predictor: Predictor) -> list[dict]:
    """The configs that may be fastest: the primitive's own best guess, then the predictor's, best first."""
    configs = list(primitive.configs(layer, shape))
    guesses = {config_key(c): predictor.seconds(primitive, layer, shape, c)[0] for c in configs}
    hopeless = _HOPELESS_GUESS * min(guesses.values())
    others = [c for c in configs[1:] if guesses[config_key(c)] <= hopeless]
    return configs[:1] + sorted(others, key=lambda c: guesses[config_key(c)])


class Scout:
    """Times configs on one layer, in a process of its own.

    Attributes
    ----------
    best_s : float or None
        The fastest turn of any primitive so far.
    """

    def __init__(self, layer: Layer, shape: Shape, threads: int, predictor: Predictor):
        self._layer, self._shape, self._threads, self._predictor = layer, shape, threads, predictor
        self._contender = Contender("scout", {}, _TURN_S)
        self.best_s: float | None = None

    def close(self) -> None:
        """End the process."""
        self._contender.close()

    def choose(self, primitive: Primitive, budget_s: float) -> list[dict]:
        """The config to compete with in each layout; only in the first one that was tried, where that was hopeless."""
        found: list[dict] = []
        configs = likely_configs(primitive, self._layer, self._shape, self._predictor)[:MOST_SCOUTED]
        pairs = layout_pairs(primitive)
        if len(configs) * len(pairs) == 1:
            return [with_layouts(configs[0], *pairs[0])]
        deadline = time.monotonic() + budget_s
        for i, pair in enumerate(pairs):
            until = deadline - budget_s * (0.3 if i == 0 and len(pairs) > 1 else 0.0)
            times = self._times(primitive, pair, configs, until)
            found.append(with_layouts(times[0][1] if times else configs[0], *pair))
            if times:
                if times[0][0] > HOPELESS * self.best_s:
                    break
                configs = [config for _, config in times[:MOST_AGAIN]]
        return found

    def _times(
        self, primitive: Primitive, pair: tuple[str, str], configs: Sequence[dict], deadline: float
    ) -> list[tuple[float, dict]]:
        """Seconds of each config that ran and came to its turn before the deadline, fastest first."""
        times: list[tuple[float, dict]] = []
        for config in configs:
            if times and time.monotonic() > deadline:
                break
            self._contender.start_over(
                layer_spec(
                    self._layer,
                    self._shape,
                    self._threads,
                    primitive=primitive.name,
                    config=with_layouts(config, *pair),
                )
            )
            taken = self._contender.turn(TIMEOUT_S)
            if not taken:
                continue  # the others may do
            seconds = middle(taken)
            times.append((seconds, config))
            self.best_s = seconds if self.best_s is None else min(self.best_s, seconds)
            if seconds > HOPELESS * self.best_s:
                break
        return sorted(times, key=lambda pair: pair[0])
