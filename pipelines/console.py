"""What every job shares of the terminal: progress on stderr, one table on stdout, a log file."""

import contextlib
import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

_STDERR = Console(stderr=True)


@contextlib.contextmanager
def bars() -> Iterator[Callable[[str, int, int], None]]:
    """Show one progress bar a stage, on stderr.

    Yields:
        Call it with the stage's name, what is done and the total.
    """
    columns = (
        TextColumn("{task.description:>10}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=_STDERR) as progress:
        tasks = {}

        def show(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = progress.add_task(stage, total=total)
            progress.update(tasks[stage], completed=done, total=total)

        yield show


def table(title: str, lines: Sequence[tuple[str, str]]) -> None:
    """Print labels and values to stdout.

    Args:
        title: Head of the table.
        lines: Label and value of each line.
    """
    grid = Table(title=title, show_header=False, title_justify="left")
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    for label, value in lines:
        grid.add_row(label, value)
    Console().print(grid)


def start_log(job: str) -> Path:
    """Send the log to stderr (from INFO) and, with every detail, to a new temporary file.

    Args:
        job: Name of the job, part of the file's name.

    Returns:
        The file.
    """
    with tempfile.NamedTemporaryFile(prefix=f"recsys-{job}-", suffix=".log", delete=False) as made:
        path = Path(made.name)
    file = logging.FileHandler(path, encoding="utf-8")
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    screen = RichHandler(console=_STDERR, show_path=False, show_time=False, markup=False)
    screen.setLevel(logging.INFO)
    for name in ("recsys", "pipelines"):
        logger = logging.getLogger(name)
        stop_log(name)
        logger.setLevel(logging.DEBUG)
        logger.propagate = False  # a library's own handler would print every line twice
        logger.addHandler(file)
        logger.addHandler(screen)
    return path


def stop_log(name: str) -> None:
    """Take a logger's handlers away and close their files.

    Args:
        name: The logger.
    """
    logger = logging.getLogger(name)
    logger.propagate = True
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
