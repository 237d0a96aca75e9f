"""``protector models``: what ships in the package."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

app = typer.Typer(help="Show the models that ship in the package.", rich_markup_mode=None)


@app.callback(invoke_without_command=True)
def models(
    context: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """Show the models that ship in the package, with each file's checksum verified."""
    if context.invoked_subcommand is not None:
        return
    detector = _describe()
    if as_json:
        typer.echo(json.dumps({"detector": detector}, indent=2))
        return
    typer.echo(f"detector  {detector['name']}@{detector['version']}  {detector['bytes'] / 1e6:.1f} MB")
    typer.echo(f"threshold {detector['threshold']:g}, windows of {detector['max_tokens']} tokens")
    for name, digest in detector["sha256"].items():
        typer.echo(f"sha256    {digest}  {name}  verified")
    typer.echo(f"card      {detector['card']}")


@app.command()
def card() -> None:
    """Print the model card of the embedded detector."""
    from protector_guardrails.models import embedded_detector_card

    typer.echo(embedded_detector_card())


def _describe() -> dict[str, Any]:
    from protector_guardrails.models import CARD, EMBEDDED_DETECTOR, load_manifest

    manifest = load_manifest(EMBEDDED_DETECTOR)  # raises if a checksum is wrong
    return {
        "name": manifest.name,
        "version": manifest.version,
        "folder": str(EMBEDDED_DETECTOR),
        "bytes": sum((EMBEDDED_DETECTOR / name).stat().st_size for name in manifest.sha256),
        "sha256": manifest.sha256,
        "verified": True,
        "max_tokens": manifest.max_tokens,
        "threshold": manifest.threshold,
        "metrics": manifest.metrics,
        "card": str(EMBEDDED_DETECTOR / CARD),
    }
