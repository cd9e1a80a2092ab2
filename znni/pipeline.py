"""A plan that is split: its first layers on the CPU, the rest on the GPU, on two patches at a time.

One thread computes the first part of a patch and puts the result into one of two slots of host memory; another, the caller's,
takes it from there and computes the rest. Each waits for the other where it must (a bounded queue of one), so that a patch
takes as long as the slower part (ZNNi, SC'16, section 7.3).
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import numpy as np

from znni.gpu.current import current
from znni.layouts import tensor_bytes
from znni.network import Network
from znni.program import Program
from znni.schedule import Levels, Shape, calls_of, loops_of, span_of
from znni.solve import Choice
from znni.split import SLOTS

Job = TypeVar("Job")
#: Seconds after which a thread that waits looks whether the other one has given up.
_PATIENCE_S = 0.2


class Pipeline:
    """Network + choices -> two programs, with `SLOTS` arrays between them.

    Parameters
    ----------
    network, pooling, levels, shape, threads
        As of `znni.program.Program`.
    split : int
        Layers of the lowered network that the first part computes, at least 1, and not all.
    first, rest : sequences of (name, Choice)
        Of the two parts, each with its conversions; the tensor between them is plain, on the host.

    Attributes
    ----------
    input, output : ndarray
        Of the first part, and of the second.
    parts : (Program, Program)
    resident_bytes, arena_bytes, device_resident_bytes, device_arena_bytes : int
        Of both together, slots counted with the arenas.
    """

    def __init__(
        self,
        network: Network,
        pooling: str,
        levels: Levels,
        shape: Shape,
        split: int,
        first: Sequence[tuple[str, Choice]],
        rest: Sequence[tuple[str, Choice]],
        threads: int,
    ):
        nodes = network.lowered(pooling, levels)
        between = shape_between(nodes, levels, shape, split)
        nbytes = tensor_bytes(between)
        held = current().pinned(SLOTS * nbytes)
        slots = [held[i * nbytes : (i + 1) * nbytes].view(np.float32).reshape(between) for i in range(SLOTS)]
        ends = (0, split), (split, len(nodes))
        self.parts = (
            Program(network, pooling, levels, shape, first, threads, ends[0], slots),
            Program(network, pooling, levels, between, rest, threads, ends[1], slots),
        )
        self.network, self.input, self.output = network, self.parts[0].input, self.parts[1].output
        self.calls = (*self.parts[0].calls, *self.parts[1].calls)
        self.device = self.parts[1].device
        self.resident_bytes = sum(part.resident_bytes for part in self.parts)
        self.arena_bytes = sum(part.arena_bytes for part in self.parts) + SLOTS * nbytes
        self.device_resident_bytes = sum(part.device_resident_bytes for part in self.parts)
        self.device_arena_bytes = sum(part.device_arena_bytes for part in self.parts)

    def run(self) -> None:
        """Compute `output` from `input`, one part after the other."""
        for part in self.parts:
            part.run(0)

    def run_timed(self, outer: int | None = None) -> list[float]:
        """As `run`; the seconds that each node took."""
        if outer is not None:
            raise ValueError("a split plan is run as a whole")
        return [second for part in self.parts for second in part.run_timed()]

    def run_all(
        self, jobs: Iterable[Job], fill: Callable[[Job, np.ndarray], None], drain: Callable[[Job, np.ndarray], None]
    ) -> float:
        """Run every job: `fill` writes its input, which the first part reads, `drain` takes its output.

        `fill` is called in a thread of its own, in order; `drain` in the caller's. The first error of either side ends
        both and is raised here.

        Returns
        -------
        float
            Seconds that the second part computed, or waited for the first.
        """
        free: queue.Queue[int] = queue.Queue()
        # slots bound it: a limit of its own would hold up the last word of a side that the other has left
        ready: queue.Queue[tuple[Job, int] | BaseException | None] = queue.Queue()
        given_up = threading.Event()
        for slot in range(SLOTS):
            free.put(slot)

        def produce() -> None:
            try:
                for job in jobs:
                    slot = _take(free, given_up)
                    if slot is None:
                        return
                    fill(job, self.input)
                    self.parts[0].run(slot)
                    ready.put((job, slot))
                ready.put(None)
            except BaseException as error:  # it is raised in the other thread
                ready.put(error)

        producer = threading.Thread(target=produce, name="first part", daemon=True)
        producer.start()
        seconds = 0.0
        try:
            while True:
                begin = time.perf_counter()
                taken = ready.get()
                if taken is None:
                    return seconds
                if isinstance(taken, BaseException):
                    raise taken
                job, slot = taken
                self.parts[1].run(slot)
                free.put(slot)
                seconds += time.perf_counter() - begin
                drain(job, self.output)
        finally:
            given_up.set()
            producer.join()


def _take(free: queue.Queue[int], given_up: threading.Event) -> int | None:
    """A free slot; None where the other side has given up."""
    while not given_up.is_set():
        try:
            return free.get(timeout=_PATIENCE_S)
        except queue.Empty:
            continue
    return None


def shape_between(nodes: Sequence, levels: Levels, shape: Shape, split: int) -> Shape:
    """Shape of the tensor between the first `split` nodes and the rest; `InvalidShape` where they cannot be parted."""
    first, _ = span_of(nodes, loops_of(nodes, levels), 0, split)
    span_of(nodes, loops_of(nodes, levels), split, len(nodes))
    return calls_of(first, (), shape)[-1].out_shape
