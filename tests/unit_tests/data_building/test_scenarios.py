"""Scenarios of our own, and those of a file."""

from __future__ import annotations

import json

import pytest

from protector_guardrails.data_building.scenarios import SCENARIOS, Scenario, read_scenarios
from protector_guardrails.errors import ConfigurationError
from protector_guardrails.types import HarmCategory


def test_our_own_are_thirteen_with_the_categories_of_the_taxonomy():
    assert len({scenario.name for scenario in SCENARIOS}) == 13
    categories = {scenario.name: scenario.category for scenario in SCENARIOS}
    assert categories["fraud"] is HarmCategory.NON_VIOLENT_CRIMES
    assert [name for name, category in categories.items() if category is None] == ["political lobbying"]
    assert all("\n" not in scenario.description for scenario in SCENARIOS)


LISTED = [
    {"name": "fire", "description": "what burns", "category": "violent_crimes"},
    {"name": "b", "description": "c"},
]


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(LISTED),
        "\ufeff" + json.dumps(LISTED, indent=1),
        "- name: fire\n  description: what burns\n  category: violent_crimes\n- {name: b, description: c}\n",
    ],
)
def test_a_list_in_yaml_or_json(tmp_path, text):
    (tmp_path / "s").write_text(text, encoding="utf-8")
    assert read_scenarios(tmp_path / "s") == (
        Scenario(name="fire", description="what burns", category=HarmCategory.VIOLENT_CRIMES),
        Scenario(name="b", description="c"),
    )


def test_names_with_descriptions(tmp_path):
    (tmp_path / "s.yaml").write_text("fire: what burns\nwater: what flows\n")
    assert [scenario.name for scenario in read_scenarios(tmp_path / "s.yaml")] == ["fire", "water"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[1, 2", "neither YAML nor JSON"),
        ("a: !!python/object/apply:os.getcwd []", "neither YAML nor JSON"),
        ("", "no scenarios"),
        ("[]", "no scenarios"),
        ("just words", "no scenarios"),
        ("- name: fire", "scenario 1: description"),
        ("- {name: fire, description: x}\n- {name: fire, description: y}", "'fire' is named twice"),
        ("- {name: a/b, description: x}", "scenario 1: name"),
        ("- {name: a, description: x, category: naughty}", "scenario 1: category"),
        ("- {name: a, description: x, hint: y}", "scenario 1: hint"),
        ("- 7", "scenario 1: entry"),
        ("fire: 7", "scenario 1: description"),
    ],
)
def test_anything_else_says_what_is_wrong(tmp_path, text, told):
    (tmp_path / "s.yaml").write_text(text)
    with pytest.raises(ConfigurationError, match=told):
        read_scenarios(tmp_path / "s.yaml")


def test_a_file_in_another_encoding(tmp_path):
    (tmp_path / "s.yaml").write_bytes("fire: was brennt, näm­lich".encode("latin-1", "replace"))
    with pytest.raises(ConfigurationError, match="UTF-8"):
        read_scenarios(tmp_path / "s.yaml")
