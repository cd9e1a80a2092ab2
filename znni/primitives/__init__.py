"""Every way to compute a layer, behind one interface (`znni.primitives.base`)."""

import importlib
import pkgutil

from znni.primitives.base import Config, Cost, Memory, Operator, Primitive, candidates, config_key, get, registered

for _module in pkgutil.iter_modules(__path__):
    if _module.name.startswith(("cpu_", "gpu_", "foreign_")):
        importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["Config", "Cost", "Memory", "Operator", "Primitive", "candidates", "config_key", "get", "registered"]
