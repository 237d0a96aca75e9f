"""``protector train``: train detectors and detoxifiers. Needs the extra ``train``."""

from __future__ import annotations

import typer

from protector_guardrails.commands.train.detector import detector
from protector_guardrails.commands.train.detoxifier import detoxifier
from protector_guardrails.commands.train.export import export
from protector_guardrails.commands.train.export_detoxifier import export_detoxifier

app = typer.Typer(help="Train a detector or a detoxifier (extra: train).", rich_markup_mode=None, no_args_is_help=False)
app.command()(detector)
app.command()(detoxifier)
app.command()(export)
app.command()(export_detoxifier)


@app.callback(invoke_without_command=True)
def train(context: typer.Context) -> None:
    """Train a detector or a detoxifier (extra: train)."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
