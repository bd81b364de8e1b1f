"""The command line: ``python -m pipelines <job> --help``.

A wrong flag exits with 2, a job that fails with 1: one line says what and where the log is.
"""

import importlib
import logging
import sys
from typing import Final

from pipelines.console import start_log, stop_log

JOBS: Final[dict[str, str]] = {
    "prepare": "parquet logs → a prepared data set: checked, split, encoded, memory-mapped",
    "train": "a prepared data set → a trained model; resumes where it was stopped",
    "evaluate": "models and baselines → Recall@K and friends with intervals; report.json and .md",
    "score": "parquet events and a model → parquet recommendations; resumable",
    "benchmark": "our speed and quality against a peer's, in one run, as ratios",
    "demo": "a small synthetic world through all of it: prepare, train, evaluate, score",
}
"""Job → one line about it; the module ``pipelines.<job>`` is imported only when it runs."""

_LOG = logging.getLogger("pipelines")


def usage() -> str:
    """List the jobs, one line each."""
    width = max(map(len, JOBS))
    lines = [f"  {name:<{width}}  {what}" for name, what in JOBS.items()]
    return "\n".join(
        ["usage: python -m pipelines JOB [FLAGS]", "", "jobs:", *lines, "",
         "`python -m pipelines JOB --help` lists the flags of a job."]
    )  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    """Run one job.

    Args:
        argv: Job and flags; None = those of the process.

    Returns:
        The exit code: 0, 1 where the job failed, 2 where job or flags are wrong.
    """
    arguments = sys.argv[1:] if argv is None else list(argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return 0 if arguments else 2
    job, flags = arguments[0], arguments[1:]
    if job not in JOBS:
        print(f"There is no job {job!r}; jobs are {', '.join(JOBS)}.", file=sys.stderr)
        return 2
    log = start_log(job)
    try:
        return int(importlib.import_module(f"pipelines.{job}").main(flags))
    except SystemExit as stop:  # --help and wrong flags end here
        log.unlink(missing_ok=True)
        return stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 2
    except KeyboardInterrupt:
        print(f"{job} was interrupted; the log is {log}.", file=sys.stderr)
        return 130
    except Exception as error:
        _LOG.debug("%s failed", job, exc_info=True)
        expected = isinstance(error, ValueError | OSError)
        what = str(error) if expected else f"{type(error).__name__}: {error}"
        print(f"{job} failed: {' '.join(what.split())} Log: {log}", file=sys.stderr)
        return 1
    finally:
        for name in ("recsys", "pipelines"):
            stop_log(name)


if __name__ == "__main__":
    sys.exit(main())
