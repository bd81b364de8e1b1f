"""One cell: train, answer the test part, keep the per-user values.

A cell's folder is named by a hash of its whole configuration and of its data set, so that equal
rows of different tables are one cell, a killed benchmark goes on where it stopped, and several
processes may fill one folder (each with its own ``--seeds``).
"""

import logging
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.configs import RunConfig
from pipelines.provenance import provenance
from pipelines.train import Paths, run_training
from recsys.config import read_json, to_dict, write_json
from recsys.context.anchors import AnchorReader
from recsys.context.config import ContextConfig
from recsys.context.impressions import impression_batches
from recsys.context.loader import evaluation_batches
from recsys.data.dataset import PreparedDataset
from recsys.evaluation.candidates import retrieved_lists
from recsys.evaluation.models import load_model, load_scorer
from recsys.evaluation.ranking import ranking_metrics_by_user, score_lists
from recsys.evaluation.ranking_scorers import ModelRanking, RetrievalOrder
from recsys.evaluation.run import evaluate
from recsys.ranking.calibrate import Calibration, task_names
from recsys.training.loop import config_hash

logger = logging.getLogger(__name__)

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

K = (10, 100, 500)
RETRIEVED = 100
"""Candidates of a test list where none were shown."""
MODEL = Path("run/model")
"""The trained model inside a cell's folder."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a cell found."""

    folder: Path
    users: Ints
    """Rows of the tested users in the data set, ascending, (U,)."""
    values: dict[str, Floats]
    """``head/metric`` → (U,) values whose mean is the metric."""
    facts: dict[str, Any]
    """Seconds, epochs, whether time ran out, versions."""

    @property
    def heads(self) -> tuple[str, ...]:
        """The retrieval's heads, the deepest last; or ``retrieval`` and ``rank``."""
        return tuple(dict.fromkeys(name.partition("/")[0] for name in self.values))


class OutOfTimeError(Exception):
    """Training went on for longer than a cell may take."""


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Raise ``OutOfTimeError`` in the block once the time is up; main thread of a Unix only."""

    def stop(signum: int, frame: FrameType | None) -> None:
        raise OutOfTimeError

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def run_cell(
    run: RunConfig,
    data: Path,
    cells: Path,
    *,
    minutes: float,
    device: str = "cpu",
    retriever: Path | None = None,
) -> Outcome:
    """Train and test one cell, or read what an earlier run found.

    Args:
        run: The cell's whole configuration.
        data: The prepared data set.
        cells: Folder of all cells.
        minutes: Training is cut there, and the best weights so far are tested.
        device: Where to compute.
        retriever: Model folder whose retrieval draws the lists that ranking is tested on, where the
            data set holds no impressions: the same for all cells.

    Returns:
        The cell's per-user values on the test part. One that was cut goes on where it may take more
        minutes than before.

    Raises:
        OutOfTimeError: If time was up before there were weights to test.
    """
    dataset = PreparedDataset(data)
    folder = cells / config_hash(run, dataset.manifest)[:16]
    if retriever is not None:
        folder = folder.with_name(f"{folder.name}-{retriever.parents[1].name}")
    if (folder / "cell.json").exists():
        known = _read(folder)
        if not known.facts["cut_short"] or minutes <= known.facts["minutes"]:
            return known
    started, cut_short = time.perf_counter(), False
    try:
        with at_most(60 * minutes):
            run_training(run, Paths(data=data, out=folder / "run", device=device, resume=True))
    except OutOfTimeError:
        cut_short = True
        if not (folder / MODEL / "config.json").exists():
            raise OutOfTimeError(
                f"--minutes ({minutes:g}) were over before the first weights of {folder.name}; run "
                "the same again to go on, or give a cell more."
            ) from None
        logger.warning("%s was cut after %g minutes", folder.name, minutes)
    trained = time.perf_counter()
    model = folder / MODEL
    if run.ranker.decoder == "none":
        users, values = retrieve(model, dataset, device)
    else:
        users, values = rank(model, dataset, device, retriever)
    history = (folder / "run/metrics.jsonl").read_text(encoding="utf-8").splitlines()
    facts = {
        "epochs": len(history),
        "cut_short": cut_short,
        "minutes": minutes,
        "train_seconds": round(trained - started, 1),
        "test_seconds": round(time.perf_counter() - trained, 1),
        "data": data.name,
        "run": to_dict(run),
        "ours": provenance(),
    }
    np.savez(folder / "values.npz", users=users, **values)  # type: ignore[arg-type]
    if not cut_short:
        shutil.rmtree(folder / "run/checkpoints", ignore_errors=True)
    write_json(folder / "cell.json", facts)
    return _read(folder)


def _read(folder: Path) -> Outcome:
    with np.load(folder / "values.npz", allow_pickle=False) as saved:
        values = {name: saved[name] for name in saved.files}
    return Outcome(folder, values.pop("users"), values, read_json(folder / "cell.json"))


def retrieve(model: Path, dataset: PreparedDataset, device: str) -> tuple[Ints, dict[str, Floats]]:
    """Rank every test target that is new to its user among the whole catalogue.

    Seen items are filtered, so that a repeated one, such as the cart of a click, no model can find.

    Args:
        model: Folder of a trained model.
        dataset: Its data set.
        device: Where to compute.

    Returns:
        Users (U,), and ``head/metric`` → (U,), the deepest head last.
    """
    context, scorer = load_scorer(model, dataset, name="cell", device=device)
    batches = evaluation_batches(
        dataset, context, part="test", batch_size=256, anchors=_anchors(dataset, context)
    )
    table = evaluate([scorer], batches, dataset.catalogue, k=K, list_k=0)
    rows = ~table.target_seen
    heads = sorted(table.ranks, key=lambda key: key[1])  # prefix, step0, step1 …
    return np.unique(table.user_index[rows]), {
        f"{key[1]}/{metric}": values
        for key in heads
        for metric, values in table.metrics(key, rows=rows).items()
    }


def rank(
    model: Path, dataset: PreparedDataset, device: str, retriever: Path | None
) -> tuple[Ints, dict[str, Floats]]:
    """Rank the test lists by the retrieval's own score and by the ranking stage.

    Args:
        model: Folder of a trained model.
        dataset: Its data set.
        device: Where to compute.
        retriever: Model folder whose retrieval draws the lists where there are no impressions.

    Returns:
        Users (U,), and ``retrieval/<task>/auc``, ``rank/<task>/gauc`` … → (U,).
    """
    context, loaded = load_model(model, dataset, device=device)
    tasks, lists = task_names(dataset.manifest), None
    if retriever is not None:
        reads, first_stage = load_model(retriever, dataset, device=device)
        lists = retrieved_lists(
            dataset, first_stage, reads, part="test", num_candidates=RETRIEVED,
            anchors=_anchors(dataset, reads), device=device,
        )  # fmt: skip
    table = score_lists(
        [
            RetrievalOrder(loaded, num_tasks=len(tasks), device=device),
            ModelRanking(loaded, name="rank", device=device),
        ],
        impression_batches(
            dataset, context, part="test", batch_size=128, lists=lists,
            anchors=_anchors(dataset, context),
        ),
        tasks,
        group_size=context.group_size,
    )  # fmt: skip
    values = {}
    for name, logits in table.logits.items():
        as_they_are, last = Calibration.identity(tasks), logits[:, -1].astype(np.float64)
        for metric, found in ranking_metrics_by_user(table, logits, as_they_are, last).items():
            if metric.endswith("auc"):
                values[f"{name}/{metric}"] = found
    return np.unique(table.user_index), values


def _anchors(dataset: PreparedDataset, context: ContextConfig) -> AnchorReader | None:
    return AnchorReader.open(dataset.path, context) if context.anchors else None
