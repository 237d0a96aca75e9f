"""The ``protector`` command."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from functools import cache
from typing import Annotated, Any

import typer

from protector_guardrails import __version__
from protector_guardrails.commands import audit, data, evaluate, models, train
from protector_guardrails.commands.check import check
from protector_guardrails.commands.demo import demo
from protector_guardrails.commands.score import score
from protector_guardrails.commands.tune import tune_threshold
from protector_guardrails.errors import ProtectorError

INTERRUPTED = 130
BROKEN_PIPE = 141  # what a shell reports of a program that SIGPIPE ended
UNUSABLE = 2

app = typer.Typer(rich_markup_mode=None, add_completion=False)
app.command()(check)
app.command()(score)
app.command()(demo)
app.add_typer(audit.app, name="audit")
app.add_typer(data.app, name="data")
app.add_typer(evaluate.app, name="evaluate")
app.command()(tune_threshold)
app.add_typer(models.app, name="models")
app.add_typer(train.app, name="train")


@app.callback(invoke_without_command=True)
def protector(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Judge what multimodal models answer: a harm detector and a detoxifier on your own machine.

    Exit status: 0 done, 1 done but not for every line (score, evaluate, data) or harmful (check
    --exit-code), 2 could not be done, 130 interrupted.
    """
    if version:
        typer.echo(__version__)
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; every expected failure ends here as one line on standard error.

    Args:
        arguments: What stands after the program's name; None: the process's own.

    Returns:
        The exit status.
    """
    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot show a character must not stop the work.
        if callable(reconfigure := getattr(stream, "reconfigure", None)):
            reconfigure(errors="replace")
    try:
        return _run(sys.argv[1:] if arguments is None else arguments)
    except (KeyboardInterrupt, typer.Abort):
        return _failed("interrupted", INTERRUPTED)
    except BrokenPipeError:
        # Whoever read our output is gone; nothing may be written at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except ProtectorError as error:
        return _failed(str(error), UNUSABLE)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _failed(f"{where}{error.strerror or error}", UNUSABLE)


def _run(arguments: Sequence[str]) -> int:
    # Not app(): that catches broken pipes and formats usage errors in its own way.
    command = _command()
    try:
        with command.make_context("protector", list(arguments)) as context:
            command.invoke(context)
        sys.stdout.flush()
    except typer.Exit as leaving:
        sys.stdout.flush()
        return leaving.exit_code
    except Exception as error:
        # Usage errors, by their shape: Typer 0.15 takes click's classes, later ones have their own.
        if not callable(message := getattr(error, "format_message", None)):
            raise
        context_of: Any = getattr(error, "ctx", None)
        path = context_of.command_path if context_of else "protector"
        return _failed(f"{message()} (see '{path} --help')", UNUSABLE)
    return 0


@cache
def _command() -> Any:
    return typer.main.get_command(app)


def _failed(message: str, status: int) -> int:
    print(f"protector: {' '.join(message.split())}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
