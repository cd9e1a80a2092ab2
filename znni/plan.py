"""The plan file: what was decided, for which network, machine and limit, and what it was seen to do.

JSON, by the schema ``znni/plan.schema.json``. A plan is data; `znni.execute` runs it.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from znni.errors import FormatError, PlanMismatch, ZnniError
from znni.layers import Relayout, Shape, Triple
from znni.layouts import PLAIN
from znni.plan_schema import validate
from znni.schedule import Level, Levels

if TYPE_CHECKING:
    from znni.network import Network
    from znni.program import Program
    from znni.volume import VolumeRun

SCHEMA = "znni-plan/1"


@dataclass(frozen=True)
class PlannedLayer:
    """One step of a plan: what computes it, and what that was predicted to take."""

    name: str
    primitive: str
    config: dict
    predicted_s: float
    host_bytes: int
    device_bytes: int = 0
    layout: str = "plain"
    #: Where the prediction came from: "measured", "scaled" or "model".
    basis: str = "model"
    #: Relative L2 error to expect of the layer.
    error: float = 0.0


@dataclass
class Plan:
    """A plan; the attributes are the keys of the file (README and ``plan.schema.json`` describe them)."""

    network: dict
    machine: dict
    limits: dict
    patch: dict
    schedule: dict
    layers: list[PlannedLayer]
    throughput: dict
    memory: dict
    split: int | None = None
    normalise: str = "none"
    verification: dict | None = None
    search: dict = field(default_factory=lambda: {"complete": False, "trials": 0, "measurements": 0})
    command: str = ""
    created: str = ""
    schema: str = SCHEMA

    def __post_init__(self):
        self._network: Network | None = None
        self._program = None

    @property
    def input_patch(self) -> Triple:
        """Input voxels (z, y, x) that go through at once."""
        return tuple(self.patch["input"])

    @property
    def output_patch(self) -> Triple:
        """Output voxels (z, y, x) that come of one input patch."""
        return tuple(self.patch["output"])

    @property
    def batch(self) -> int:
        """Patches that go through together."""
        return self.patch["batch"]

    @property
    def pooling(self) -> str:
        """The dense form in which poolings run (`znni.lowering`)."""
        return self.schedule["pooling"]

    @property
    def levels(self) -> Levels:
        """The order of the fragments (`znni.schedule`); empty where they run breadth first."""
        return tuple(Level(**level) for level in self.schedule.get("levels", ()))

    @property
    def threads(self) -> int:
        """Threads that it was tuned for and runs with."""
        return self.schedule["threads"]

    def cut_at(self) -> int:
        """Of a split plan, how many steps its first part has: `split` layers, and the conversion to plain after them."""
        from znni.primitives import get

        computing = [i for i, layer in enumerate(self.layers) if get(layer.primitive).kind != Relayout.kind]
        after = computing[self.split - 1] + 1
        converts = after not in computing and self.layers[after].layout == PLAIN
        return after + converts

    def input_shape(self, in_channels: int) -> Shape:
        """Shape of the program's input."""
        return (self.batch, in_channels, *self.input_patch)

    @property
    def digest(self) -> str:
        """SHA-256 of all that decides the result: network, patch, schedule, primitives and configs, kernels."""
        decides = [
            self.network["digest"],
            self.machine.get("kernels"),
            self.patch,
            self.split,
            {key: value for key, value in self.schedule.items() if key != "split_seconds"},
            [[layer.name, layer.primitive, layer.config, layer.layout] for layer in self.layers],
        ]
        return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()

    def to_dict(self) -> dict:
        """The plan as JSON data."""
        return {f.name: getattr(self, f.name) for f in fields(self)} | {"layers": [asdict(x) for x in self.layers]}

    @classmethod
    def from_dict(cls, data: object, name: str = "plan") -> Plan:
        """The plan in `data`; `FormatError`, naming what is wrong, where it is none."""
        if not isinstance(data, dict):
            raise FormatError(f"{name} is not a plan: expected a JSON object, got {type(data).__name__}")
        if data.get("schema") != SCHEMA:
            raise FormatError(
                f"{name} is not a plan this version reads: expected schema {SCHEMA}, got {data.get('schema')!r}"
            )
        known = {f.name for f in fields(cls)}
        validate(data, name)
        try:
            layers = [PlannedLayer(**layer) for layer in data["layers"]]
        except TypeError as error:
            raise FormatError(f"{name} has a damaged layer: {error}") from error
        return cls(**{k: v for k, v in data.items() if k in known and k != "layers"}, layers=layers)

    def save(self, path: str | Path) -> None:
        """Write the file, atomically: a reader sees the old plan or the new one, never half of one."""
        path = Path(path)
        try:
            handle, scratch = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        except OSError as error:
            raise ZnniError(f"cannot write {path}: {error.strerror}; choose another folder with -o") from error
        try:
            with os.fdopen(handle, "w") as file:
                json.dump(self.to_dict(), file, indent=1)
                file.write("\n")
                file.flush()
                os.fsync(file.fileno())
            os.chmod(scratch, 0o666 & ~_umask())
            os.replace(scratch, path)
        except BaseException as error:
            Path(scratch).unlink(missing_ok=True)
            if not isinstance(error, OSError):
                raise
            raise ZnniError(
                f"cannot write {path}: {error.strerror}; the file that was there, if any, is untouched"
            ) from error

    @classmethod
    def load(cls, path: str | Path, network: Network | None = None) -> Plan:
        """Read a plan file and bind it to its network.

        Parameters
        ----------
        path : str or Path
        network : Network, optional
            The network to run; by default the one that the plan names is loaded again. `PlanMismatch` where its digest is not
            the plan's.
        """
        from znni.load import load

        plan = cls.read(path)
        if network is None:
            source = plan.network
            network = load(source["source"], source.get("weights"), source.get("seed"), source.get("width"))
        plan.bind(network, str(path))
        return plan

    @classmethod
    def read(cls, path: str | Path) -> Plan:
        """Read a plan file without its network."""
        try:
            text = Path(path).read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise FormatError(
                f"cannot read plan {path}: {getattr(error, 'strerror', None) or 'not a text file'}"
            ) from error
        try:
            data = json.loads(text)
        except json.JSONDecodeError as error:
            raise FormatError(
                f"{path} is not a complete plan: JSON ends or breaks at line {error.lineno}; make it again with znni-tune tune"
            ) from error
        return cls.from_dict(data, str(path))

    def bind(self, network: Network, name: str = "the plan") -> None:
        """Attach `network`; `PlanMismatch` where the plan was made for another one or cannot run here."""
        from znni.primitives import registered

        if network.digest != self.network["digest"]:
            raise PlanMismatch(
                f"{name} was made for {self.network['name']} (digest {self.network['digest'][:12]}), "
                f"got {network.name} (digest {network.digest[:12]}); tune a plan for this network"
            )
        here = registered()
        missing = sorted({layer.primitive for layer in self.layers} - set(here))
        if missing:
            raise PlanMismatch(f"{name} needs {', '.join(missing)}, which this installation lacks; tune again here")
        network.check_patch(self.input_patch, self.pooling)
        nodes = network.lowered(self.pooling, self.levels)
        computing = [layer for layer in self.layers if here[layer.primitive].kind != Relayout.kind]
        if [node.name for node in nodes] != [layer.name for layer in computing]:
            raise PlanMismatch(f"{name} lists other layers than {network.name} has; tune again")
        self._network = network

    def program(self, limit_bytes: int | None = None) -> Program:
        """The executable form (`znni.program.Program`), made once and kept; bounded by the plan's limit or `limit_bytes`."""
        from znni.execute import program

        if self._program is None:
            self._program = program(self.bound_network(), self, limit_bytes)
        return self._program

    def bound_network(self) -> Network:
        """The network that `bind` attached; `PlanMismatch` where there is none yet."""
        if self._network is None:
            raise PlanMismatch("this plan has no network yet; use Plan.load, or plan.bind(network)")
        return self._network

    def run(self, x: np.ndarray) -> np.ndarray:
        """The dense result for `x` (batch, channels, z, y, x), float32, of any size from the field of view on."""
        from znni.execute import run_array

        return run_array(self.bound_network(), self, x)

    def run_volume(
        self,
        source: str | Path,
        target: str | Path,
        *,
        normalise: str | None = None,
        overwrite: bool = False,
        limit_bytes: int | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> VolumeRun:
        """Run from file to file (`znni.execute.run_volume_files`)."""
        from znni.execute import run_volume_files

        return run_volume_files(
            self.bound_network(),
            self,
            source,
            target,
            normalise=normalise,
            overwrite=overwrite,
            limit_bytes=limit_bytes,
            progress=progress,
        )


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
