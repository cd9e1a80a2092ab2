"""Plan files held against their published schema (``plan.schema.json``), by the few keywords of JSON Schema that it uses."""

from __future__ import annotations

import json
import re
from functools import cache
from importlib.resources import files

from znni.errors import FormatError

_TYPES = {
    "object": dict,
    "array": list,
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "null": type(None),
}


@cache
def schema() -> dict:
    """The schema as data."""
    return json.loads(files("znni").joinpath("plan.schema.json").read_text())


def validate(data: object, name: str) -> None:
    """Raise `FormatError`, naming the first part that is wrong, unless `data` keeps to the schema."""
    _validate(data, schema(), "", name)


def _is(value: object, kind: str) -> bool:
    if isinstance(value, bool) and kind != "boolean":
        return False  # to Python a bool is an int
    return isinstance(value, _TYPES[kind])


def _validate(value: object, rule: dict, where: str, name: str) -> None:
    if "$ref" in rule:
        rule = schema()["$defs"][rule["$ref"].rpartition("/")[2]]
    here = where or "it"

    def refuse(expected: str) -> FormatError:
        shown = json.dumps(value)
        shown = shown if len(shown) <= 60 else shown[:60] + ".."
        return FormatError(f"{name} is not a complete plan: {here} must be {expected}, got {shown}")

    kinds = rule.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if kinds and not any(_is(value, kind) for kind in kinds):
        raise refuse(" or ".join(kinds))
    if "const" in rule and value != rule["const"]:
        raise refuse(json.dumps(rule["const"]))
    if "enum" in rule and value not in rule["enum"]:
        raise refuse(f"one of {', '.join(map(str, rule['enum']))}")
    if "minimum" in rule and _is(value, "number") and not value >= rule["minimum"]:
        raise refuse(f"at least {rule['minimum']}")
    if "maximum" in rule and _is(value, "number") and not value <= rule["maximum"]:
        raise refuse(f"at most {rule['maximum']}")
    if "pattern" in rule and isinstance(value, str) and not re.search(rule["pattern"], value):
        raise refuse(f"of the form {rule['pattern']}")
    if isinstance(value, dict):
        for key in rule.get("required", []):
            if key not in value:
                raise FormatError(f"{name} is not a complete plan: {where}{'.' if where else ''}{key} is missing")
        for key, own in rule.get("properties", {}).items():
            if key in value:
                _validate(value[key], own, f"{where}.{key}" if where else key, name)
    if isinstance(value, list):
        least, most = rule.get("minItems", 0), rule.get("maxItems", len(value))
        if not least <= len(value) <= most:
            raise refuse(f"a list of {least}" + (" or more" if most != least else ""))
        for number, item in enumerate(value):
            _validate(item, rule.get("items", {}), f"{where}[{number}]", name)
