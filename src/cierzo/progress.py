"""Progress of long work: a bar on a terminal, silence in a pipe."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Report = Callable[[int, int], None]
"""Called with what is done and what there is in all."""


@contextmanager
def progress_bar(label: str, *, wanted: bool = True, unit: str = "bytes") -> Iterator[Report]:
    """A function that moves a bar on standard error; it does nothing when unwanted or when that is no terminal.

    `unit` "bytes" shows amounts, rate and time left in bytes; any other word is shown as it is.
    """
    if not wanted or not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich import progress
    from rich.console import Console

    amounts: tuple[progress.ProgressColumn, ...] = (progress.DownloadColumn(), progress.TransferSpeedColumn())
    if unit != "bytes":
        amounts = (progress.MofNCompleteColumn(), progress.TextColumn(unit))
    with progress.Progress(
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        *amounts,
        progress.TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    ) as bar:
        task = bar.add_task(label, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
