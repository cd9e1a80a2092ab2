"""The schema's own reader agrees with jsonschema on plans that are damaged in every possible place."""

from __future__ import annotations

import copy
import json

import jsonschema
import pytest

from znni.default_plan import default_plan
from znni.errors import FormatError
from znni.load import load
from znni.plan_schema import schema, validate

#: Every keyword that the reader understands, and those that only tell people something.
KEYWORDS = {"type", "const", "enum", "minimum", "maximum", "pattern", "required", "properties", "items", "minItems", "maxItems",
            "$ref", "$defs", "$schema", "$id", "title", "description"}  # fmt: skip


@pytest.fixture(scope="module")
def data():
    made = default_plan(load("n4", width=2), memory_bytes=2 << 30, volume=(1, 32, 32), threads=1)
    return json.loads(json.dumps(made.to_dict()))


def places(data, path=()):
    """The path of every value in nested data."""
    found = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in found:
        yield (*path, key)
        yield from places(value, (*path, key))


def test_only_keywords_that_are_understood():
    def walk(rule):
        assert set(rule) <= KEYWORDS
        for part in ("properties", "$defs"):
            for own in rule.get(part, {}).values():
                walk(own)
        if "items" in rule:
            walk(rule["items"])

    walk(schema())


def test_a_plan_is_valid(data):
    validate(data, "plan.json")


@pytest.mark.parametrize("junk", ["delete", "x", None, -1, 0, 1.5, [], {}, True, 10**12, [1, 2], [1, 2, 3, 4]], ids=str)
def test_damage_is_told_like_jsonschema_does(data, junk):
    checker = jsonschema.Draft202012Validator(schema())
    told = 0
    for path in places(data):
        damaged = copy.deepcopy(data)
        parent = damaged
        for key in path[:-1]:
            parent = parent[key]
        if junk == "delete":
            del parent[path[-1]]
        else:
            parent[path[-1]] = junk
        if checker.is_valid(damaged):
            validate(damaged, "plan.json")
        else:
            with pytest.raises(FormatError, match=r"plan.json is not a complete plan: .*(must be|is missing)"):
                validate(damaged, "plan.json")
            told += 1
    assert told > 10


def test_the_place_is_named(data):
    damaged = copy.deepcopy(data)
    damaged["layers"][1]["predicted_s"] = "soon"
    with pytest.raises(FormatError, match=r'layers\[1\]\.predicted_s must be number, got "soon"'):
        validate(damaged, "plan.json")
    with pytest.raises(FormatError, match="it must be object, got 3"):
        validate(3, "plan.json")
