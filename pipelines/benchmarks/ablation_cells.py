"""The paper's tables 3–6 for us: which change of a run each row is, and what it is held against.

A cell is a named change of one base run on one data set. Rows carry the paper's own figure where
the paper has that row; its metrics and data (Shopee search) differ, so that only the order of rows
can be held against ours.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal, TypeVar

from pipelines.configs import RunConfig

T = TypeVar("T")

Stage = Literal["retrieval", "ranking"]
View = Literal["ids", "items", "all", "ranking"]
"""What is declared of a log when it is prepared: item ids alone; with item features; with all
features and situation columns; all that and the lists that were shown."""

ANCHOR_TOKENS = 30
"""Anchors of the rows that do not vary them; the paper's have 90."""
LIST_LENGTH = 24
"""Candidates a request trains on, whatever the size of its groups."""
LAST_EPOCH = 1_000_000
"""Epochs between validations of which only the one at the end is left."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One row of a table."""

    name: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Dotted field of the run → value."""
    anchors: int = ANCHOR_TOKENS
    """Anchor tokens in all, shared out evenly over the data set's groups; 0 = none."""
    view: View = "all"
    head: str | None = None
    """What of the model answers: ``prefix``, ``step0`` …; of ranking ``retrieval``, its own order,
    or ``rank``. None = the deepest."""
    against: tuple[str, ...] = ()
    """Rows of the same table that this one is compared with, user by user."""
    paper: tuple[str, tuple[float, ...]] | None = None
    """The paper's row and its figures, in the order of the table's ``paper_metrics``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """One of the paper's tables."""

    title: str
    stage: Stage
    cells: tuple[Cell, ...]
    paper_metrics: tuple[str, ...] = ("R@100", "R@500")
    note: str = ""


def changed(config: T, changes: Mapping[str, Any]) -> T:
    """Replace fields of nested frozen dataclasses.

    Args:
        config: A dataclass instance.
        changes: Dotted field → value.

    Returns:
        A new instance.

    Example:
        >>> changed(RunConfig(), {"reasoner.num_steps": 3}).reasoner.num_steps
        3
    """
    for name, value in changes.items():
        head, _, rest = name.partition(".")
        inner = changed(getattr(config, head), {rest: value}) if rest else value
        config = replace(config, **{head: inner})  # type: ignore[type-var]
    return config


def run_of(cell: Cell, stage: Stage, base: RunConfig, anchors: tuple[str, ...]) -> RunConfig:
    """The run that a cell is.

    Args:
        cell: The row.
        stage: Of its table.
        base: The data set's run.
        anchors: Groups of anchors that the data set has.

    Returns:
        The whole configuration, but for the seed and the number of epochs.
    """
    found: dict[str, Any] = {"answer": "last"}
    if cell.anchors and anchors:
        length = max(1, round(cell.anchors / len(anchors)))
        found |= {"context.anchors": anchors, "context.anchor_length": length}
    if stage == "ranking":  # its last weights count: retrieval is what validation looks at
        found |= {"ranker.decoder": "own", "train.validate_every": LAST_EPOCH}
        found["context.requests_per_row"] = max(1, base.context.requests_per_row // 2)
    return changed(base, {**found, **cell.changes})


def _steps(number: int, **reasoner: Any) -> dict[str, Any]:
    return {"reasoner.num_steps": number, **{f"reasoner.{k}": v for k, v in reasoner.items()}}


def _ranker(number: int, size: int = 12, **ranker: Any) -> dict[str, Any]:
    """Reasoning steps and group size; a request trains on as many candidates whatever the size."""
    return {
        "ranker.num_steps": number,
        "context.group_size": size,
        "context.groups": LIST_LENGTH // size,
        **{f"ranker.{k}": v for k, v in ranker.items()},
    }


_PLAIN = "history + item features"
_SITUATION = "+ user and situation"

TABLE_3: Final = Table(
    title="Table 3: structured context (retrieval, K = 2)",
    stage="retrieval",
    note=(
        "The paper adds the situation last, ours comes first: a query's anchors need the query. So "
        "the paper's V3-V6 have no situation, and its row for 90 anchors is its full model, V8."
    ),
    cells=(
        Cell(
            name="history, ids only", view="ids", anchors=0, changes={"context.situation": ()},
            paper=("V1", (0.407, 0.646)),
        ),
        Cell(
            name=_PLAIN, view="items", anchors=0, changes={"context.situation": ()},
            against=("history, ids only",), paper=("V2", (0.428, 0.657)),
        ),
        Cell(name=_SITUATION, anchors=0, against=(_PLAIN,)),
        *(
            Cell(name=f"+ {tokens} anchors", anchors=tokens, against=(_SITUATION,), paper=paper)
            for tokens, paper in {
                10: ("V3", (0.459, 0.677)),
                20: ("V4", (0.467, 0.686)),
                30: ("V5", (0.475, 0.689)),
                60: ("V6", (0.491, 0.707)),
                90: ("V8", (0.517, 0.731)),
            }.items()
        ),
    ),
)  # fmt: skip

TABLE_4: Final = Table(
    title="Table 4: reasoning steps of retrieval",
    stage="retrieval",
    note=(
        "Every step of ours is trained; the paper's V3-V5 train the last alone. Its progressive "
        "V6 goes from impression to click, ours from the item's category or cluster to the item."
    ),
    cells=(
        Cell(name="prefix head", changes=_steps(0), head="prefix"),
        Cell(
            name="K = 0", changes=_steps(0), against=("prefix head",),
            paper=("V2", (0.470, 0.676)),
        ),
        Cell(name="K = 0, three layers", changes=_steps(0, num_layers=3), against=("K = 0",)),
        Cell(
            name="K = 1", changes=_steps(1), against=("K = 0",), paper=("V3", (0.490, 0.708)),
        ),
        Cell(
            name="K = 2", changes=_steps(2), against=("K = 0", "K = 0, three layers"),
            paper=("V5", (0.510, 0.726)),
        ),
        Cell(name="K = 3", changes=_steps(3), against=("K = 0",)),
        Cell(
            name="K = 2, coarse → fine",
            changes={**_steps(2), "train.objective.targets": "coarse_to_fine"},
            against=("K = 2", "K = 0"), paper=("V6", (0.517, 0.731)),
        ),
        Cell(
            name="K = 2, shared decoder", against=("K = 2",),
            changes={**_steps(2, decoder="shared", isolated=False)},
        ),
        Cell(
            name="K = 2, full attention, one request a row", against=("K = 2, shared decoder",),
            changes={
                **_steps(2, decoder="shared", isolated=False),
                "encoder.attention": "full",
                "context.requests_per_row": 1,
                "train.objective.prefix_weight": 0.0,
            },
        ),
    ),
)  # fmt: skip

_RANKING_METRICS = ("C-AUC", "C-GAUC", "A-AUC", "A-GAUC", "O-AUC", "O-GAUC")

TABLE_5: Final = Table(
    title="Table 5: reasoning steps of ranking",
    stage="ranking",
    paper_metrics=_RANKING_METRICS,
    note=(
        "K = 0 with four layers costs as many operations as K = 3 with one. The paper's rows have "
        "a bidirectional context, ours a causal history."
    ),
    cells=(
        Cell(
            name="the retrieval's order", view="ranking", head="retrieval",
            changes=_ranker(0, candidates_visible=False),
        ),
        Cell(
            name="K = 0, candidates apart", view="ranking",
            changes=_ranker(0, candidates_visible=False), against=("the retrieval's order",),
            paper=("V2", (0.860, 0.859, 0.903, 0.848, 0.920, 0.847)),
        ),
        Cell(
            name="K = 0", view="ranking", changes=_ranker(0),
            against=("K = 0, candidates apart",),
            paper=("V3", (0.881, 0.879, 0.918, 0.857, 0.937, 0.854)),
        ),
        Cell(
            name="K = 0, four layers", view="ranking", changes=_ranker(0, num_layers=4),
            against=("K = 0",),
        ),
        *(
            Cell(
                name=f"K = {steps}, all tasks last", view="ranking",
                changes=_ranker(steps, progressive=False), against=("K = 0",), paper=paper,
            )
            for steps, paper in {
                1: ("V4", (0.890, 0.889, 0.931, 0.871, 0.946, 0.867)),
                2: ("V5", (0.893, 0.894, 0.936, 0.876, 0.948, 0.869)),
                3: ("V6", (0.906, 0.902, 0.946, 0.889, 0.957, 0.881)),
            }.items()
        ),
        Cell(
            name="K = 3, progressive", view="ranking", changes=_ranker(3),
            against=("K = 3, all tasks last", "K = 0, four layers", "K = 0"),
            paper=("V7", (0.911, 0.909, 0.952, 0.897, 0.963, 0.886)),
        ),
    ),
)  # fmt: skip

TABLE_6: Final = Table(
    title="Table 6: candidates of a group (ranking, K = 3, progressive)",
    stage="ranking",
    paper_metrics=_RANKING_METRICS,
    note=(
        "Every row trains on the same candidates, cut into groups of C. Rows with candidates apart "
        "have the block's width without the set in view; the paper has no such rows."
    ),
    cells=(
        Cell(
            name="C = 1", view="ranking", changes=_ranker(3, 1),
            paper=("C = 1", (0.885, 0.881, 0.923, 0.861, 0.947, 0.871)),
        ),
        *(
            Cell(
                name=f"C = {size}", view="ranking", changes=_ranker(3, size),
                against=("C = 1", f"C = {size}, apart"), paper=(f"C = {size}", paper),
            )
            for size, paper in {
                4: (0.913, 0.911, 0.951, 0.896, 0.961, 0.885),
                8: (0.920, 0.918, 0.956, 0.899, 0.964, 0.887),
                12: (0.927, 0.923, 0.958, 0.903, 0.969, 0.893),
            }.items()
        ),
        *(
            Cell(
                name=f"C = {size}, apart", view="ranking",
                changes=_ranker(3, size, candidates_visible=False), against=("C = 1",),
            )
            for size in (4, 8, 12)
        ),
    ),
)  # fmt: skip

TABLES: Final[dict[str, Table]] = {"3": TABLE_3, "4": TABLE_4, "5": TABLE_5, "6": TABLE_6}
"""The paper's number → our table."""

MAIN_ROWS: Final[dict[str, tuple[str, ...]]] = {
    "3": (_SITUATION, "+ 30 anchors"),
    "4": ("prefix head", "K = 0", "K = 0, three layers", "K = 2", "K = 2, coarse → fine"),
    "5": ("the retrieval's order", "K = 0, candidates apart", "K = 0", "K = 0, four layers",
          "K = 3, all tasks last", "K = 3, progressive"),
    "6": ("C = 12", "C = 12, apart"),
}  # fmt: skip
"""The four main contrasts, for logs whose cells are dear: anchors on or off, K, progressive or
not, candidates visible or not."""


def rows_of(number: str, *, only_main: bool) -> Table:
    """A table, or its main rows with their comparisons.

    Args:
        number: One of ``TABLES``.
        only_main: Leave the rows that are not in ``MAIN_ROWS`` out.

    Returns:
        The table.
    """
    table = TABLES[number]
    if not only_main:
        return table
    kept = MAIN_ROWS[number]
    cells = tuple(
        replace(cell, against=tuple(name for name in cell.against if name in kept))
        for cell in table.cells
        if cell.name in kept
    )
    return replace(table, cells=cells)
