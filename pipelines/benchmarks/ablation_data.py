"""The logs of the ablation: what each is, how it is prepared, and the run its cells change.

``world`` and ``search`` are synthetic and sized so that a cell takes about a minute on one core;
``search`` is a log in which a query's answer is known from other searchers' recent clicks. The
others are public logs found by ``recsys.data.catalogue.locate``.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

from pipelines.benchmarks.ablation_cells import View, changed
from pipelines.configs import RunConfig, beauty, default, demo, ml_1m
from recsys.context.config import AnchorName
from recsys.data.anchors import AnchorsConfig, AnchorTables
from recsys.data.catalogue import source, tables
from recsys.data.dataset import PreparedDataset
from recsys.data.prepare import PrepareConfig, prepare
from recsys.data.synthetic import SyntheticConfig, synthetic_world, write
from recsys.schema import ColumnSpec, SplitSpec
from recsys.training.loop import config_hash

WORLD: Final = SyntheticConfig(
    num_users=1_600, num_items=600, num_events=40_000, impression_share=0.3, list_length=24
)
SEARCH: Final = SyntheticConfig(
    num_users=2_000,
    num_items=2_400,
    num_events=40_000,
    num_topics=8,
    search_share=0.95,
    query_share=0.75,
    transition_share=0.05,
    repeat_share=0.03,
    trend_share=0.03,
    impression_share=0.3,
    list_length=24,
)
SYNTHETIC_COLUMNS: Final = ColumnSpec(
    item_features=("categories", "brand", "price", "title"),
    user_features=("age_group", "region", "device"),
    event_features=("device", "query"),
    situation=("device", "query"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class AblationData:
    """One log."""

    base: Callable[[], RunConfig]
    """The run that cells change."""
    anchors: tuple[AnchorName, ...]
    """Groups of preference anchors; those by time need times, ``query`` needs queries."""
    candidates: Literal["impressions", "built"]
    """What ranking trains and is tested on."""
    only_main: bool = True
    """Cells are dear: only the four main contrasts."""
    world: SyntheticConfig | None = None
    """What to generate; None = a public log."""
    public: str | None = None
    """Its name in ``recsys.data.catalogue``."""
    prepared: Path | None = None
    """A data set that is prepared already; it is used as it is."""
    views: tuple[View, ...] = ("ids", "items", "all", "ranking")
    """What of it can be prepared."""
    item_features: tuple[str, ...] | None = None
    """Declared of a public log's items; None = all that is recommended."""
    list_tasks: tuple[str, ...] = ()
    """Funnel that the shown lists tell of; () = the log's."""
    anchor_bins: int = 16
    """Time bins of the anchors' tables, or user folds."""


def _small() -> RunConfig:
    """The demo's run with smaller steps, and more of them."""
    return changed(
        demo(),
        {
            "context.requests_per_row": 4,
            "train.epochs": 15,
            "train.batch_rows": 32,
            "train.patience": 0,
            "train.validate_every": 5,
        },
    )


def _sampled() -> RunConfig:
    """For large catalogues: sampled softmax, unknown items by their features."""
    return changed(
        default(),
        {
            "encoder.max_history": 100,
            "encoder.id_dropout": 0.1,
            "context.max_history": 100,
            "train.objective.prefix_loss": "sampled_softmax",
            "train.objective.step_losses": ("sampled_softmax",),
            "train.objective.num_negatives": 2048,
            "train.batch_rows": 32,
            "train.patience": 0,
            "train.optimizer.lr": 3e-3,
        },
    )


def _ml_1m() -> RunConfig:
    """The named run with fewer requests: each brings its anchors and candidates along."""
    return changed(ml_1m(), {"context.requests_per_row": 4})


_SEARCH_ANCHORS: Final[tuple[AnchorName, ...]] = (
    "query", "trending", "category", "neighbours", "own",
)  # fmt: skip
_ANCHORS = _SEARCH_ANCHORS[1:]

DATA: Final[dict[str, AblationData]] = {
    "world": AblationData(
        base=_small, anchors=_SEARCH_ANCHORS, candidates="impressions", only_main=False,
        world=WORLD,
    ),
    "search": AblationData(
        base=_small, anchors=_SEARCH_ANCHORS, candidates="impressions", only_main=False,
        world=SEARCH, anchor_bins=30,
    ),
    "taobao": AblationData(
        base=_sampled, anchors=_ANCHORS, candidates="built", public="taobao-ub-sample",
    ),
    "trivago": AblationData(
        base=_sampled, anchors=("trending", "neighbours", "own"), candidates="impressions",
        public="trivago-rsc19-100k",
        list_tasks=("click",),
    ),
    "ml-1m": AblationData(
        base=_ml_1m, anchors=_ANCHORS, candidates="built", public="ml-1m",
        item_features=("categories",),
    ),
    "beauty": AblationData(
        base=beauty, anchors=_ANCHORS, candidates="built", public="amazon-beauty",
        item_features=("categories",),
    ),
}  # fmt: skip
"""Name on the command line → the log."""


def open_data(name: str) -> tuple[str, AblationData]:
    """Look a log up.

    Args:
        name: One of ``DATA``, or the folder of a prepared data set.

    Returns:
        Its short name, and the log.

    Raises:
        ValueError: If there is no such log or folder.
    """
    if name in DATA:
        return name, DATA[name]
    folder = Path(name)
    if not (folder / "manifest.json").exists():
        raise ValueError(
            f"--data ({name!r}) must be one of {sorted(DATA)}, or the folder of a prepared data "
            "set."
        )
    has_lists = PreparedDataset(folder).manifest.num_impressions > 0
    tables = AnchorTables.open(folder).info.names
    return folder.name, AblationData(
        base=default,
        anchors=(*tables, "own") if tables else (),
        candidates="impressions" if has_lists else "built",
        only_main=False,
        prepared=folder,
        views=("all", "ranking"),
    )


def prepared(data: AblationData, view: View, out: Path) -> Path:
    """Prepare a view of a log, once.

    Args:
        data: The log.
        view: What is declared of it.
        out: Folder of the benchmark; logs and prepared data go below it.

    Returns:
        The prepared data set.
    """
    if data.prepared is not None:
        return data.prepared
    config = narrowed(whole(data, _tables(data, out)), view)
    if view == "ranking" and data.list_tasks:
        config = replace(config, funnel=data.list_tasks)
    folder = out / "prepared" / config_hash(config)[:12]
    if not (folder / "manifest.json").exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        prepare(replace(config, out=folder))
    return folder


def _tables(data: AblationData, out: Path) -> dict[str, Path]:
    """Paths of the log's tables; a synthetic one is written, once."""
    if data.world is None:
        assert data.public is not None
        return tables(data.public)
    logs = out / "logs" / config_hash(data.world)[:12]
    if not (logs / "complete").exists():
        write(synthetic_world(data.world), logs)
        (logs / "complete").touch()
    return {name: logs / f"{name}.parquet" for name in ("events", "items", "users", "impressions")}


def whole(data: AblationData, paths: Mapping[str, Path]) -> PrepareConfig:
    """How a log is prepared with everything that is known of it.

    All of a user's test targets count, so that intervals are tight.

    Args:
        data: The log.
        paths: Its tables.

    Returns:
        The configuration, but for where it is written.
    """
    anchors = tuple(name for name in data.anchors if name != "own")  # which needs no table
    config = PrepareConfig(
        events=(str(paths["events"]),),
        items=(str(paths["items"]),),
        out=Path(),
        anchors=AnchorsConfig(names=anchors, num_bins=data.anchor_bins),
    )
    if data.public is None:
        return replace(
            config,
            users=(str(paths["users"]),),
            impressions=(str(paths["impressions"]),),
            columns=SYNTHETIC_COLUMNS,
            split=SplitSpec(validation_fraction=0.05, test_fraction=0.2, target="all"),
            funnel=("click", "cart", "order"),
            target_behavior="click",
            text_features=("title",),
        )
    known = source(data.public)
    assert known.columns is not None
    assert known.split is not None
    columns = known.columns
    if data.item_features is not None:
        columns = replace(columns, item_features=data.item_features)
    declared = {*columns.item_features, *columns.user_features, *columns.event_features}
    return replace(
        config,
        users=(str(paths["users"]),) if columns.user_features else (),
        impressions=(str(paths["impressions"]),) if "impressions" in paths else (),
        columns=columns,
        split=replace(known.split, target="all"),
        funnel=known.funnel,
        target_behavior=known.target_behavior,
        categorical_features=tuple(n for n in known.categorical_features if n in declared),
        text_features=tuple(n for n in known.text_features if n in declared),
    )


def narrowed(config: PrepareConfig, view: View) -> PrepareConfig:
    """Declare less of a log.

    Args:
        config: With everything that is known.
        view: What is wanted of it.

    Returns:
        The configuration of the view.
    """
    if view == "ranking":
        return config
    config = replace(config, impressions=())
    if view == "all":
        return config
    features = config.columns.item_features if view == "items" else ()
    return replace(
        config,
        items=config.items if features else (),
        users=(),
        columns=replace(
            config.columns,
            item_features=features,
            user_features=(),
            event_features=(),
            situation=(),
        ),
        categorical_features=tuple(n for n in config.categorical_features if n in features),
        text_features=tuple(n for n in config.text_features if n in features),
        coarse="auto" if features else "none",
        anchors=AnchorsConfig(),
    )
