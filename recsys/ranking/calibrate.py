"""From logits to probabilities: a slope and an intercept a task, fitted on the validation part.

``calibration.json``, in the model folder::

    {"version": 1, "tasks": {"click": {"slope": 1.1, "intercept": -0.3,
                                       "rows": 90000, "positives": 4100}, …}}

Tasks come weakest first. The slope is what logistic regression finds; a negative one says that the
logits order this task backwards, and is kept, because hiding it would help nobody.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recsys.config import from_dict, read_json, write_json
from recsys.schema import Manifest

CALIBRATION_FILE = "calibration.json"
CALIBRATION_VERSION = 1


def task_names(manifest: Manifest) -> tuple[str, ...]:
    """Names of the ranking's tasks, weakest first.

    Args:
        manifest: Of the data set.

    Returns:
        The funnel, also beyond the retrieval's target; ``("target",)`` where none is declared.
    """
    return manifest.funnel or ("target",)


def declared_task(manifest: Manifest, tasks: Sequence[str]) -> str:
    """The task whose probability is the final score unless another is asked for.

    Args:
        manifest: Of the data set, which may declare a target.
        tasks: Names of the ranking's tasks, weakest first.

    Returns:
        The target where it is a task, else the last task.
    """
    target = manifest.target_behavior
    return target if target is not None and target in tasks else tasks[-1]


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskCalibration:
    """Platt's calibration of one task: probability = sigmoid(slope · logit + intercept)."""

    slope: float = 1.0
    intercept: float = 0.0
    rows: int = 0
    """Candidates it was fitted on; 0 where the logits are taken as they are."""
    positives: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """Calibrations of all tasks, weakest first."""

    version: int = CALIBRATION_VERSION
    tasks: dict[str, TaskCalibration]

    @staticmethod
    def identity(tasks: Sequence[str]) -> "Calibration":
        """Take logits for what they are: log odds."""
        return Calibration(tasks={name: TaskCalibration() for name in tasks})

    @staticmethod
    def fit(
        tasks: Sequence[str], logits: NDArray[np.floating], levels: NDArray[np.integer]
    ) -> "Calibration":
        """Fit by maximum likelihood.

        Args:
            tasks: Names, weakest first.
            logits: Of n candidates, (n, S).
            levels: What became of each, (n,): task s is positive where the level is above s.

        Returns:
            The calibration. A task whose labels are all alike, or whose logits are, has no slope to
            fit and keeps its logits as they are, with ``rows`` 0.

        Raises:
            ValueError: If the shapes disagree or a logit is not finite.

        Source:
            Platt, "Probabilistic outputs for support vector machines", 1999, without his
            smoothing of the labels.
        """
        values = np.asarray(logits, dtype=np.float64)
        if values.shape != (len(levels), len(tasks)):
            raise ValueError(
                f"logits {values.shape} must be (n, S) for {len(levels)} levels and tasks "
                f"{list(tasks)}."
            )
        if not np.isfinite(values).all():
            raise ValueError("logits must be finite; check the model's weights for NaN.")
        return Calibration(
            tasks={name: _fit(values[:, s], levels > s) for s, name in enumerate(tasks)}
        )

    def apply(self, logits: Tensor) -> Tensor:
        """Turn logits into probabilities.

        Args:
            logits: (..., S).

        Returns:
            (..., S) float64, which keeps apart what float32 would round to one.

        Raises:
            ValueError: If the last dimension is not one a task.
        """
        if logits.shape[-1] != len(self.tasks):
            raise ValueError(
                f"logits {tuple(logits.shape)} must have {len(self.tasks)} columns, one for each "
                f"of {list(self.tasks)}."
            )
        numbers = [(task.slope, task.intercept) for task in self.tasks.values()]
        slope, intercept = torch.tensor(numbers, dtype=torch.float64, device=logits.device).T
        return torch.sigmoid(logits.double() * slope + intercept)

    def save(self, folder: Path) -> None:
        """Write ``calibration.json`` into a model folder, atomically."""
        write_json(folder / CALIBRATION_FILE, self)

    @staticmethod
    def read(folder: Path, tasks: Sequence[str]) -> "Calibration":
        """Read a model folder's calibration.

        Args:
            folder: The model folder.
            tasks: Names the model has, weakest first.

        Returns:
            The calibration; the identity where none was fitted.

        Raises:
            ValueError: If the file is of another version or of other tasks.
        """
        path = folder / CALIBRATION_FILE
        if not path.exists():
            return Calibration.identity(tasks)
        found = from_dict(Calibration, read_json(path), where=str(path))
        if found.version != CALIBRATION_VERSION or tuple(found.tasks) != tuple(tasks):
            raise ValueError(
                f"{path} is of version {found.version} and tasks {list(found.tasks)}, not "
                f"{CALIBRATION_VERSION} and {list(tasks)}: fit it again by `evaluate --stage "
                "ranking --ranking.calibrate`."
            )
        return found


def _fit(logits: NDArray[np.float64], labels: NDArray[np.bool_]) -> TaskCalibration:
    spread = float(logits.std()) if len(logits) else 0.0
    if spread == 0 or labels.all() or not labels.any():
        return TaskCalibration()
    centre = float(logits.mean())
    # In units of their own spread the solver's tolerance means the same for every logit; the very
    # weak prior keeps the slope finite where a few rows happen to be told apart perfectly.
    from sklearn.linear_model import LogisticRegression  # 2 seconds that only fitting needs

    found = LogisticRegression(C=1e4, tol=1e-8, max_iter=1000)
    found.fit((logits[:, None] - centre) / spread, labels)
    slope = float(found.coef_[0, 0]) / spread
    return TaskCalibration(
        slope=slope,
        intercept=float(found.intercept_[0]) - slope * centre,
        rows=len(labels),
        positives=int(labels.sum()),
    )
