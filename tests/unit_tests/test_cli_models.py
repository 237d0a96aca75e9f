"""``protector models``: what ships, and fetching what does not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from protector_guardrails import models
from protector_guardrails.cli import main
from protector_guardrails.models import base_weights
from protector_guardrails.models.base_weights import SMOLLM2, FoundBase
from protector_guardrails.models.hashing import sha256_of

FILES = ("adapter_config.json", "adapter_model.safetensors", "prompt_template.json")


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PROTECTOR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.fixture
def detoxifier(tmp_path, monkeypatch) -> Path:
    """A folder in the place of the embedded detoxifier; nobody loads its weights here."""
    folder = tmp_path / "embedded_detoxifier"
    folder.mkdir()
    for name in FILES:
        (folder / name).write_text(name)
    (folder / "MODEL_CARD.md").write_text("# A detoxifier\n")
    manifest = {
        "name": "tiny",
        "version": "7",
        "base": SMOLLM2.repository,
        "base_sha256": SMOLLM2.gguf_sha256,
        "max_new_tokens": 100,
        "max_prompt_tokens": 500,
        "max_echo": 0.3,
        "sha256": {name: sha256_of(folder / name) for name in FILES},
    }
    (folder / "detoxifier.json").write_text(json.dumps(manifest))
    monkeypatch.setattr(models, "EMBEDDED_DETOXIFIER", folder)
    return folder


def told(capsys) -> dict:
    assert main(["models", "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_both_models_and_the_base_are_described(detoxifier, capsys):
    description = told(capsys)
    assert set(description) == {"detector", "detoxifier", "base"}
    assert description["detector"]["verified"] is True
    assert (description["detoxifier"]["name"], description["detoxifier"]["version"]) == ("tiny", "7")
    assert description["detoxifier"]["sha256"] == {name: sha256_of(detoxifier / name) for name in FILES}
    assert description["base"] == {"name": SMOLLM2.repository, "folder": None, "source": None, "verified": False}
    assert main(["models"]) == 0
    out = capsys.readouterr().out
    assert "detoxifier  tiny@7" in out
    assert out.count("verified") == 2 + len(FILES)
    assert "not on this machine: protector models pull" in out


@pytest.mark.parametrize("harm", ["changed", "gone"])
def test_a_broken_detoxifier_does_not_hide_the_detector(detoxifier, capsys, harm):
    if harm == "changed":
        (detoxifier / FILES[1]).write_text("something else")
    else:
        shutil.rmtree(detoxifier)
    description = told(capsys)
    assert "verified" not in description["detoxifier"]
    assert ("sha256" if harm == "changed" else "no detoxifier") in description["detoxifier"]["error"]
    assert description["detector"]["verified"] is True
    assert main(["models"]) == 0
    assert "not usable" in capsys.readouterr().out


def test_cards(detoxifier, capsys):
    assert main(["models", "card", "detoxifier"]) == 0
    assert capsys.readouterr().out.startswith("# A detoxifier")
    assert main(["models", "card"]) == 0
    detector = capsys.readouterr().out
    assert main(["models", "card", "detector"]) == 0
    assert capsys.readouterr().out == detector
    shutil.rmtree(detoxifier)
    assert main(["models", "card", "detoxifier"]) == 2
    assert "MODEL_CARD.md cannot be read" in capsys.readouterr().err


def test_pull_says_what_it_did(monkeypatch, tmp_path, capsys):
    asked = []

    def find(base, *, tell, asked_for):
        asked.append((base, asked_for))
        tell("fetching", 1, 2)
        return FoundBase(tmp_path, "the mirror")

    monkeypatch.setattr(base_weights, "find_base", find)
    assert main(["models", "pull"]) == 0
    captured = capsys.readouterr()
    assert captured.out == f"{SMOLLM2.repository} fetched from the mirror: {tmp_path}\n"
    assert captured.err == ""  # no bar where there is no terminal
    assert asked == [(SMOLLM2, True)]


def test_pull_leaves_what_is_there(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(base_weights, "installed_base", lambda base: FoundBase(tmp_path, "the cache"))
    monkeypatch.setattr(base_weights, "find_base", lambda *_, **__: pytest.fail("fetched"))
    assert main(["models", "pull", "detoxifier"]) == 0
    assert "is there, verified, from the cache" in capsys.readouterr().out


def test_the_detector_needs_nothing(capsys):
    assert main(["models", "pull", "detector"]) == 0
    assert "nothing to fetch" in capsys.readouterr().out


def test_a_file_that_is_not_the_published_one_is_refused(tmp_path, capsys):
    (tmp_path / "file.gguf").write_text("GGUF")
    assert main(["models", "pull", "--from", str(tmp_path / "file.gguf")]) == 2
    assert "has sha256" in capsys.readouterr().err
    assert main(["models", "pull", "nonsense"]) == 2
