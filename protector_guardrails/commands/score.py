"""``protector score``: judge a file of responses."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from protector_guardrails.commands.judging import ThresholdOption, flagging_protector
from protector_guardrails.commands.lines import LineReader, LineWriter
from protector_guardrails.commands.resume import EarlierRun, ErrorLog
from protector_guardrails.commands.rows import BLANK, Fields, MalformedLineError, Row, check_fields, parse_row
from protector_guardrails.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable

    from protector_guardrails.protector import Protector

_Item = Row | tuple[int, str]
"""A row, or of a malformed line its number and the reason."""

_MOST_PENDING = 4096  # malformed lines wait for the batch they stand in, but not without end


def score(  # noqa: PLR0917 - options of the command line
    source: Annotated[
        Path,
        typer.Argument(metavar="IN", exists=True, dir_okay=False, readable=True, help="JSON Lines, plain or gzip."),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="OUT", dir_okay=False, help="JSON Lines; gzip if it ends in .gz.")
    ],
    response_field: Annotated[str, typer.Option(help="Field with the response.")] = "response",
    question_field: Annotated[str, typer.Option(help="Field with the question, if there is one.")] = "question",
    image_description_field: Annotated[
        str, typer.Option(help="Field that says what the image shows: a string, or a list of them.")
    ] = "image_desc",
    batch_size: Annotated[int, typer.Option(min=1, help="Responses judged at a time.")] = 64,
    threshold: ThresholdOption = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where an interrupted run stopped.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing output.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bar and no counts.")] = False,
) -> None:
    """Judge every line of IN and write it to OUT with its verdict in the field "protector".

    Order and all fields stay as they are; blank lines are left out. A line that cannot
    be judged is left out too: its number and the reason go to OUT.errors.jsonl, and
    the exit status is 1.
    """
    errors = output.with_name(output.name + ".errors.jsonl")
    _check_paths(source, output, errors, resume=resume, force=force)
    fields = Fields(response=response_field, question=question_field, image_description=image_description_field)
    check_fields(source, fields)
    protector = flagging_protector(threshold)

    with ExitStack() as stack:
        reader = stack.enter_context(LineReader(source))
        earlier = None
        if resume and output.exists():
            earlier = EarlierRun(
                output, errors, detector=protector.detector.name, threshold=protector.policy.default_threshold
            )
        else:
            output.unlink(missing_ok=True)
        log = stack.enter_context(ErrorLog(errors, staged=earlier is not None))
        report = stack.enter_context(_progress(reader, shown=not quiet))
        scoring = _Scoring(protector, fields, batch_size, output, log, report)
        try:
            scoring.run(reader, earlier)
        except KeyboardInterrupt:
            typer.echo(f"what was judged is in {output}; the same command with --resume goes on", err=True)
            raise
    if log.count:
        typer.echo(f"{log.count} of {log.count + scoring.scored} lines could not be judged: see {errors}", err=True)
    if not quiet:
        kept = f" ({earlier.scored} of them earlier)" if earlier else ""
        typer.echo(f"{scoring.scored} scored{kept}, {scoring.harmful} harmful, {log.count} malformed or failed")
    if log.count:
        raise typer.Exit(1)


@dataclass
class _Scoring:
    """One pass over the input."""

    protector: Protector
    fields: Fields
    batch_size: int
    output: Path
    log: ErrorLog
    report: Callable[[], None]
    scored: int = 0
    harmful: int = 0

    def run(self, reader: LineReader, earlier: EarlierRun | None) -> None:
        """Judge what ``earlier`` has not."""
        todo = self._skip(self._rows(reader), earlier) if earlier else self._rows(reader)
        first = next(todo, None)
        if earlier:  # everything it covers has been walked
            earlier.cut()
            self.log.commit()
            self.scored, self.harmful = earlier.scored, earlier.harmful
        with LineWriter(self.output) as writer:
            pending: list[_Item] = []
            rows = 0
            for item in todo if first is None else chain([first], todo):
                pending.append(item)
                rows += isinstance(item, Row)
                if rows == self.batch_size or len(pending) == _MOST_PENDING:
                    self._judge(pending, writer)
                    pending, rows = [], 0
            self._judge(pending, writer)

    def _rows(self, reader: LineReader) -> Iterator[_Item]:
        """Rows, and for malformed lines their number and the reason."""
        for number, raw in reader:
            if not raw.strip(BLANK):
                continue
            try:
                yield parse_row(number, raw, self.fields)
            except MalformedLineError as error:
                yield number, str(error)

    def _skip(self, items: Iterator[_Item], earlier: EarlierRun) -> Iterator[_Item]:
        """What is left to do; what was done is compared with the earlier output, and its errors noted again."""
        for item in items:
            known = earlier.knows(item) if isinstance(item, Row) else item[1]
            if known is False:
                yield item
                break
            if isinstance(known, str):
                self.log.write(item.number if isinstance(item, Row) else item[0], known)
        yield from items

    def _judge(self, pending: list[_Item], writer: LineWriter) -> None:
        outcomes = iter(self.protector.guard([item.exchange for item in pending if isinstance(item, Row)]))
        lines: list[bytes] = []
        for item in pending:
            if not isinstance(item, Row):
                self.log.write(*item)
                continue
            outcome = next(outcomes)
            if outcome.verdict is None:
                self.log.write(item.number, outcome.error or "could not be judged")
            else:
                lines.append(item.line(outcome.verdict))
                self.harmful += outcome.verdict.harmful
        self.log.flush()  # before the output: see EarlierRun
        writer.write(b"".join(lines))
        self.scored += len(lines)
        self.report()


def _check_paths(source: Path, output: Path, errors: Path, *, resume: bool, force: bool) -> None:
    if resume and force:
        raise ConfigurationError("--resume keeps the output and --force drops it: choose one")
    if not source.is_file():
        raise ConfigurationError(f"{source} is not a regular file, and it has to be read twice")
    for path in (output, errors):
        if path.exists() and path.samefile(source):
            raise ConfigurationError(f"{path} would overwrite the input")
    if not output.parent.is_dir():
        raise ConfigurationError(f"there is no folder {output.parent}")
    if output.exists() and not (resume or force):
        raise ConfigurationError(f"{output} exists: go on with --resume, or overwrite it with --force")


@contextmanager
def _progress(reader: LineReader, *, shown: bool) -> Iterator[Callable[[], None]]:
    """A bar on standard error that follows the input's bytes; yields what moves it."""
    from rich.console import Console

    if not shown or not Console(stderr=True).is_terminal:  # in a log a bar is noise
        yield lambda: None
        return
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (TextColumn("judging"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("judging", total=max(reader.size, 1))
        yield lambda: progress.update(task, completed=reader.position)
        progress.update(task, completed=max(reader.size, 1))
