"""What a contest measured, kept in the store: primitives like any measurement, peers as rows of device ``peer``."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence

from tuner.contest import Contender
from znni.layers import Conv, Shape, layer_of
from znni.machine import Machine
from znni.store import OpenMeasurement, Store
from znni.store_rows import MeasurementKey
from znni.timing import Timing, summarise

#: Device of rows that no primitive of znni was timed for.
PEER = "peer"
#: The convolution whose rate by PyTorch, in FLOP/s, is the R of a score.
RATE_LAYER = Conv(80, (3, 3, 3))
RATE_SHAPE: Shape = (1, 80, 58, 58, 58)
RATE_FLOP = 2 * 80 * 80 * 27 * 56**3


def key_of(spec: dict, machine: Machine) -> MeasurementKey:
    """The key under which a contender's samples are stored."""
    layer, shape = layer_of(spec["layer"]), tuple(spec["shape"])
    if "peer" in spec:
        built = f"{spec['peer']} {importlib.metadata.version(spec['peer'].split('.')[0])}"
        config = {"variant": spec["variant"]}
        return MeasurementKey(layer, shape, spec["peer"], config, spec["threads"], machine.fingerprint, built, PEER)
    return MeasurementKey(
        layer, shape, spec["primitive"], spec["config"], spec["threads"], machine.fingerprint, machine.kernels
    )


class Recorder:
    """Rows of the store that fill as contenders take their turns."""

    def __init__(self, store: Store, machine: Machine):
        self._store, self._machine = store, machine
        self._open: dict[int, OpenMeasurement] = {}

    def __call__(self, contender: Contender, seconds: Sequence[float]) -> None:
        """Keep the samples of one turn."""
        row = self._open.get(id(contender))
        if row is None:
            key = key_of(contender.spec, self._machine)
            row = self._store.open_measurement(key, predicted_bytes=contender.facts.get("predicted_bytes"))
            self._open[id(contender)] = row
        for sample in seconds:
            row.add_sample(sample)

    def finish(self, contenders: Sequence[Contender]) -> None:
        """Close the rows."""
        for contender in contenders:
            row = self._open.get(id(contender))
            if row is None:
                continue
            measured, error = contender.facts.get("measured_bytes"), contender.relative_l2
            if contender.failure:
                row.fail(contender.failure, measured_bytes=measured, relative_l2=error)
            else:
                row.finish(timing_of(contender.seconds), measured_bytes=measured, relative_l2=error)


def timing_of(samples: Sequence[float]) -> Timing:
    """The samples of interleaved turns as one timing."""
    summary = summarise(samples)
    return Timing(tuple(samples), (), 1, summary.median_s, summary.iqr_s, summary.interval_s, single=len(samples) == 1)


def known_rate(store: Store, machine: Machine, threads: int) -> float | None:
    """R in FLOP/s by the newest rows of PyTorch here, the better of its memory formats; None where it was not timed."""
    rows = store.measurements(machine=machine.fingerprint, threads=threads, layer=RATE_LAYER, primitive="torch")
    medians = {
        str(dict(row.key.config)): row.median_s
        for row in rows
        if row.key.shape == RATE_SHAPE and row.median_s and not row.failed
    }
    return RATE_FLOP / min(medians.values()) if medians else None
