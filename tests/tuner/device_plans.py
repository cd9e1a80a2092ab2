"""Plans on the GPU, and split ones, of small networks, as a search would find them."""

from __future__ import annotations

from znni.candidate import Solved, plan_of, solve_candidate
from znni.gpu.ceilings import DeviceCeilings
from znni.machine import this_machine
from znni.network import Network
from znni.plan import Plan
from znni.predict import Predictor
from znni.split import solve_split
from znni.walk import Candidate, Walk

MIB = 1 << 20
#: So much faster than a CPU that every layer that can be there is.
FAST = DeviceCeilings(1e15, 1e14, 1e12, 1e12)


def gpu_plan(network: Network, output: int = 8, split: int | None = None, device_bytes: int = 256 * MIB) -> Plan:
    """A plan with its layers on the GPU, all but the first `split`."""
    candidate, predictor = Candidate((output,) * 3, 1, "fragments", 2), Predictor(2, gpu=FAST)
    if split is None:
        solved = solve_candidate(network, candidate, predictor, 1000 * MIB, 2e-5, device_bytes, split=False)
    else:
        walk = Walk(network, candidate, ())
        found = solve_split(network, candidate, (), split, predictor, 1e-5, (1000 * MIB, device_bytes))
        solved = Solved(candidate, (), walk.calls, found, split)
    plan = plan_of(
        network, solved, limit_bytes=4000 * MIB, baseline_bytes=0, machine=this_machine().describe(),
        device_limit_bytes=device_bytes,
    )  # fmt: skip
    plan.bind(network)
    return plan
