"""Public data sets by name: where they come from, on what terms, how to read and prepare them.

``locate`` finds a local copy in the library's columns, ``download`` and ``convert`` make one from
what the makers publish. No data set is part of the library: most terms forbid passing it on.
Checksums are those the makers publish; None where they publish none.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import recsys
from recsys.data import published
from recsys.data.download import fetch
from recsys.schema import ColumnSpec, SplitSpec

_LEAVE_ONE_OUT = SplitSpec(kind="leave_one_out")
_GROUPLENS = (
    "GroupLens: research use, acknowledgement required; no redistribution and no commercial use "
    "without permission."
)
_HARPER = (
    "F. M. Harper, J. A. Konstan: The MovieLens Datasets: History and Context. "
    "ACM Transactions on Interactive Intelligent Systems 5(4), 2015."
)
_AMAZON_2014 = (
    "Provided by UCSD for research; no licence to redistribute is stated: treat as research only."
)
_MCAULEY = (
    "R. He, J. McAuley: Ups and Downs: Modeling the Visual Evolution of Fashion Trends with "
    "One-Class Collaborative Filtering. WWW 2016. J. McAuley, C. Targett, J. Shi, A. van den "
    "Hengel: Image-Based Recommendations on Styles and Substitutes. SIGIR 2015."
)
_AMAZON_PAGE = "https://cseweb.ucsd.edu/~jmcauley/datasets/amazon/links.html"
_AMAZON_FILES = "http://snap.stanford.edu/data/amazon/productGraph/categoryFiles"


@dataclass(frozen=True, kw_only=True, slots=True)
class Download:
    """One file as its maker publishes it."""

    url: str
    file: str
    """Name to save it under."""
    checksum: str | None = None
    """``md5:…`` or ``sha256:…`` as published; None = none is."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DataSource:
    """A public data set."""

    name: str
    title: str
    homepage: str | None
    """Official page; None where we know of none."""
    terms: str
    citation: str
    redistributable: bool = False
    """Whether the terms allow passing the data on. It is never copied into the project anyway."""
    downloads: tuple[Download, ...] = ()
    """Empty where an account is needed, or where we only know a local form."""
    published_files: tuple[str, ...] = ()
    """What ``convert`` reads, plain, gzipped or in a zip; empty = there is no converter."""
    converter: Callable[[Path, Path], None] | None = None
    columns: ColumnSpec | None = field(default_factory=ColumnSpec)
    """How to read the tables; None where the log has neither times nor an order."""
    split: SplitSpec | None = field(default_factory=SplitSpec)
    """The recommended split: that of the literature, else by global time."""
    funnel: tuple[str, ...] = ()
    target_behavior: str | None = None
    categorical_features: tuple[str, ...] = ()
    """Declared number columns that are names."""
    text_features: tuple[str, ...] = ()
    note: str = ""
    """What to know before comparing results."""


def _amazon(name: str, category: str) -> DataSource:
    files = (f"reviews_{category}_5.json.gz", f"meta_{category}.json.gz")
    return DataSource(
        name=name,
        title=f"Amazon product reviews 2014, {category.replace('_', ' ')}, 5-core",
        homepage=_AMAZON_PAGE,
        terms=_AMAZON_2014,
        citation=_MCAULEY,
        downloads=tuple(Download(url=f"{_AMAZON_FILES}/{file}", file=file) for file in files),
        published_files=files,
        converter=partial(published.amazon_2014, category=category),
        columns=ColumnSpec(item_features=("categories", "brand", "text")),
        split=_LEAVE_ONE_OUT,
        text_features=("text",),
        note="Times have day resolution; ties follow the order of rows.",
    )


def _amazon_pair(name: str, title: str) -> DataSource:
    return DataSource(
        name=name,
        title=title,
        homepage=_AMAZON_PAGE,
        terms=_AMAZON_2014,
        citation=_MCAULEY + " Selection of users: ABXI, WWW 2025.",
        columns=ColumnSpec(domain="domain"),
        split=_LEAVE_ONE_OUT,
        note="Every user is in both domains; the last 50 events. Day resolution.",
    )


_SOURCES = (
    DataSource(
        name="ml-100k",
        title="MovieLens 100K",
        homepage="https://grouplens.org/datasets/movielens/100k/",
        terms=_GROUPLENS,
        citation=_HARPER,
        downloads=(
            Download(
                url="https://files.grouplens.org/datasets/movielens/ml-100k.zip",
                file="ml-100k.zip",
                checksum="md5:0e33842e24a9c977be4e0107933c0723",
            ),
        ),
        published_files=("u.data", "u.item", "u.user"),
        converter=published.movielens_100k,
        columns=ColumnSpec(
            item_features=("categories", "year", "text"),
            user_features=("age", "gender", "occupation"),
        ),
        split=_LEAVE_ONE_OUT,
        text_features=("text",),
    ),
    DataSource(
        name="ml-1m",
        title="MovieLens 1M",
        homepage="https://grouplens.org/datasets/movielens/1m/",
        terms=_GROUPLENS,
        citation=_HARPER,
        downloads=(
            Download(
                url="https://files.grouplens.org/datasets/movielens/ml-1m.zip",
                file="ml-1m.zip",
                checksum="md5:c4d9eecfca2ab87c1945afe126590906",
            ),
        ),
        published_files=("ratings.dat", "movies.dat", "users.dat"),
        converter=published.movielens_1m,
        columns=ColumnSpec(
            timestamp=None,
            order="seq_pos",
            item_features=("categories", "year", "text"),
            user_features=("gender", "age", "occupation"),
        ),
        split=_LEAVE_ONE_OUT,
        categorical_features=("age", "occupation"),
        text_features=("text",),
        note=(
            "Many ratings share a second, so the order of ties moves a quarter of the targets: "
            "compare only runs on one file. No time features: a re-assembled copy has "
            "interpolated times, and the published times are those of rating sprees."
        ),
    ),
    DataSource(
        name="ml-20m",
        title="MovieLens 20M",
        homepage="https://grouplens.org/datasets/movielens/20m/",
        terms=_GROUPLENS,
        citation=_HARPER,
        downloads=(
            Download(
                url="https://files.grouplens.org/datasets/movielens/ml-20m.zip",
                file="ml-20m.zip",
                checksum="md5:cd245b17a1ae2cc31bb14903e1204af3",
            ),
        ),
        published_files=("ratings.csv", "movies.csv"),
        converter=published.movielens_20m,
        columns=ColumnSpec(item_features=("categories", "year", "text")),
        split=_LEAVE_ONE_OUT,
        text_features=("text",),
    ),
    _amazon("amazon-beauty", "Beauty"),
    _amazon("amazon-sports", "Sports_and_Outdoors"),
    DataSource(
        name="amazon-games-2018",
        title="Amazon product reviews 2018, Video Games, 5-core, last 50 events of a user",
        homepage="https://nijianmo.github.io/amazon/index.html",
        terms=_AMAZON_2014,
        citation=(
            "J. Ni, J. Li, J. McAuley: Justifying Recommendations using Distantly-Labeled Reviews "
            "and Fine-Grained Aspects. EMNLP 2019."
        ),
        columns=ColumnSpec(
            timestamp=None, order="seq_pos", item_features=("categories", "brand", "text")
        ),
        split=_LEAVE_ONE_OUT,
        text_features=("text",),
        note="No times, only each user's order. Near-duplicate variants follow each other.",
    ),
    _amazon_pair(
        "amazon-xd-beauty-electronics", "Amazon ratings 2014, Beauty and Electronics, shared users"
    ),
    _amazon_pair(
        "amazon-xd-food-kitchen", "Amazon ratings 2014, Grocery and Kitchen, shared users"
    ),
    DataSource(
        name="taobao-ub-sample",
        title="Taobao UserBehavior (the local copy holds its first 814 users)",
        homepage="https://tianchi.aliyun.com/dataset/649",
        terms="Tianchi: research, non-commercial; often given as CC BY-NC-SA 4.0 (not verified).",
        citation=(
            "H. Zhu, X. Li, P. Zhang, G. Li, J. He, H. Li, K. Gai: Learning Tree-based Deep Model "
            "for Recommender Systems. KDD 2018."
        ),
        published_files=("UserBehavior.csv",),
        converter=published.taobao,
        columns=ColumnSpec(item_features=("categories",)),
        funnel=("click", "cart", "order"),
        target_behavior="click",
        note="Download needs an account. Favourites stand outside the funnel.",
    ),
    DataSource(
        name="retailrocket",
        title="RetailRocket e-commerce",
        homepage="https://www.kaggle.com/datasets/retailrocket/ecommerce-dataset",
        terms="CC BY-NC-SA 4.0: non-commercial, share alike, attribution.",
        citation="Retailrocket recommender system dataset. Kaggle, 2016.",
        redistributable=True,
        published_files=(
            "events.csv",
            "item_properties_part1.csv",
            "item_properties_part2.csv",
            "category_tree.csv",
        ),
        converter=published.retailrocket,
        columns=ColumnSpec(item_features=("categories",)),
        funnel=("view", "cart", "order"),
        target_behavior="view",
        note="Download needs a Kaggle account. As published: 2,756,101 events.",
    ),
    DataSource(
        name="retailrocket-core",
        title="RetailRocket, core of users with 10 and items with 40 events",
        homepage="https://www.kaggle.com/datasets/retailrocket/ecommerce-dataset",
        terms="CC BY-NC-SA 4.0: non-commercial, share alike, attribution.",
        citation="Retailrocket recommender system dataset. Kaggle, 2016. Subset by A. Fortes.",
        redistributable=True,
        columns=None,
        split=None,
        note="Neither times nor order: good for labels of a funnel, not for sequences.",
    ),
    DataSource(
        name="online-retail",
        title="Online Retail (UCI)",
        homepage="https://archive.ics.uci.edu/dataset/352/online+retail",
        terms="CC BY 4.0: attribution.",
        citation=(
            "D. Chen: Online Retail. UCI Machine Learning Repository, 2015. "
            "https://doi.org/10.24432/C5BW33"
        ),
        redistributable=True,
        downloads=(
            Download(
                url="https://archive.ics.uci.edu/static/public/352/data.csv",
                file="data.csv",
            ),
        ),
        published_files=("data.csv",),
        converter=published.online_retail,
        columns=ColumnSpec(item_features=("price", "text"), user_features=("country",)),
        target_behavior="order",
        text_features=("text",),
        note="Items of an order share a minute. Repeat purchases and wholesalers; cancellations.",
    ),
    DataSource(
        name="alibaba-brand-s1",
        title="Alibaba Big Data Competition 2014, season 1 (brands)",
        homepage=None,
        terms="Competition data of Alibaba; no licence to redistribute known: research only.",
        citation="Alibaba Big Data Competition 2014, season 1, offline log.",
        columns=ColumnSpec(),
        funnel=("click", "cart", "order"),
        target_behavior="click",
        note="Items are brands. Days only, the year is an assumption; carts are rare (153).",
    ),
    DataSource(
        name="trivago-rsc19-100k",
        title="trivago RecSys Challenge 2019, first 100,003 rows",
        homepage="https://recsys.trivago.cloud/challenge/dataset/",
        terms="Challenge data of trivago; no licence to redistribute known: research only.",
        citation=(
            "P. Knees, Y. Deldjoo, F. Bakhshandegan Moghaddam, J. Adamczak, G.-P. Leyson, "
            "P. Monreal: RecSys Challenge 2019: Session-based Hotel Recommendations. RecSys 2019."
        ),
        columns=ColumnSpec(item_features=("price",), user_features=("platform", "device")),
        funnel=("view", "click"),
        target_behavior="click",
        note="Two days. impressions.parquet holds the lists that were shown.",
    ),
)
SOURCES: dict[str, DataSource] = {source.name: source for source in _SOURCES}
"""Every data set the library knows, by name."""


def source(name: str) -> DataSource:
    """Look a data set up.

    Args:
        name: One of ``SOURCES``.

    Returns:
        What is known of it.

    Raises:
        ValueError: If the name is unknown.
    """
    if name not in SOURCES:
        raise ValueError(f"name ({name!r}) must be one of {sorted(SOURCES)}.")
    return SOURCES[name]


def locate(name: str) -> Path:
    """Find a local copy in the library's columns.

    Looked for in ``$RECSYS_DATA/<name>``, in ``data/<name>`` of the repository and of the current
    folder, and in ``shared/data/<name>`` beside the repository.

    Args:
        name: One of ``SOURCES``.

    Returns:
        A folder with ``events.parquet``.

    Raises:
        ValueError: If the name is unknown or there is no copy; the message says how to get one.
    """
    known = source(name)
    folders = _folders()
    for folder in folders:
        if (folder / name / "events.parquet").is_file():
            return folder / name
    if known.downloads:
        way = f"download({name!r}, folder) and convert({name!r}, folder, target)"
    elif known.published_files:
        way = f"get {', '.join(known.published_files)} from {known.homepage} and convert them"
    else:
        way = f"see {known.homepage or 'the data folder README'}"
    looked = ", ".join(str(folder / name) for folder in folders)
    raise ValueError(
        f"There is no local copy of {name!r} (looked for events.parquet in {looked}). To get one: "
        f"{way}; then set RECSYS_DATA to the folder that holds {name}/. Terms: {known.terms}"
    )


def tables(name: str) -> dict[str, Path]:
    """List the tables of a local copy.

    Args:
        name: One of ``SOURCES``.

    Returns:
        ``events`` and, where there, ``items``, ``users`` and ``impressions``, each with its path.

    Raises:
        ValueError: As ``locate``.
    """
    folder = locate(name)
    paths = {
        kind: folder / f"{kind}.parquet" for kind in ("events", "items", "users", "impressions")
    }
    return {kind: path for kind, path in paths.items() if path.is_file()}


def download(name: str, folder: Path | str) -> list[Path]:
    """Fetch the published files, with progress, resuming what broke off.

    Args:
        name: One of ``SOURCES``. Downloading means accepting its ``terms``.
        folder: Where the files go.

    Returns:
        The files.

    Raises:
        ValueError: If the name is unknown, an account is needed, the network fails, or a checksum
            is wrong.
    """
    known = source(name)
    if not known.downloads:
        wanted = ", ".join(known.published_files) or "the data set"
        raise ValueError(
            f"{name!r} cannot be fetched without an account: get {wanted} from "
            f"{known.homepage or 'its maker'} by hand. Terms: {known.terms}"
        )
    return [
        fetch(one.url, Path(folder) / one.file, checksum=one.checksum) for one in known.downloads
    ]


def convert(name: str, published_folder: Path | str, folder: Path | str) -> Path:
    """Turn published files into parquet tables in the library's columns.

    Args:
        name: One of ``SOURCES``.
        published_folder: Folder with the published files or archives, or one archive.
        folder: Where ``events.parquet``, ``items.parquet`` and ``users.parquet`` go.

    Returns:
        ``folder``.

    Raises:
        ValueError: If the name is unknown or has no converter, or if a file is missing or has
            other columns.
    """
    known = source(name)
    if known.converter is None:
        convertible = sorted(key for key, value in SOURCES.items() if value.converter)
        raise ValueError(
            f"{name!r} has no converter; those of {convertible} have. Its local copies are read "
            "as they are."
        )
    known.converter(Path(published_folder), Path(folder))
    return Path(folder)


def _folders() -> list[Path]:
    repository = Path(recsys.__file__).resolve().parents[1]
    named = os.environ.get("RECSYS_DATA")
    return [
        *([Path(named)] if named else []),
        repository / "data",
        Path.cwd() / "data",
        repository.parent / "shared" / "data",
    ]
