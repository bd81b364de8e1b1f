"""Public data sets in the formats their makers publish → parquet in the library's columns.

Every converter takes a folder with the published files (or archives) and writes ``events.parquet``,
``items.parquet`` and, where users are described, ``users.parquet``. Rows keep the published order,
so that ties in time stay reproducible. Nothing is filtered unless the docstring says so.
"""

import ast
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recsys.data.published_files import (
    convert_batches,
    find_published,
    need_columns,
    open_published,
    read_batches,
    read_small,
    write_table,
)

LOG = logging.getLogger(__name__)

ML_100K_GENRES = (
    "unknown Action Adventure Animation Children's Comedy Crime Documentary Drama Fantasy "
    "Film-Noir Horror Musical Mystery Romance Sci-Fi Thriller War Western"
).split()
TAOBAO_FIRST, TAOBAO_LAST = 1_511_539_200, 1_512_316_799
"""25 November to 3 December 2017 in China, the period that the data set's page states."""
ITEM_SCHEMA = pa.schema(
    [
        ("item_id", pa.string()),
        ("title", pa.string()),
        ("categories", pa.list_(pa.string())),
        ("brand", pa.string()),
        ("price", pa.float64()),
        ("text", pa.string()),
    ]
)


def movielens_100k(source: Path, folder: Path) -> None:
    """Convert ``u.data``, ``u.item`` and ``u.user``.

    Args:
        source: Folder or archive with the published files.
        folder: Where the parquet files go.
    """
    rating = read_small(
        source, "u.data", ["user_id", "item_id", "rating", "timestamp"], delimiter="\t"
    )
    names = ["item_id", "title", "date", "video_date", "url", *ML_100K_GENRES]
    movies = read_small(source, "u.item", names, delimiter="|", encoding="latin-1").to_pandas()
    flags = movies[ML_100K_GENRES].to_numpy(dtype=np.int64)
    genres = [[ML_100K_GENRES[i] for i in np.flatnonzero(row)] for row in flags]
    users = read_small(source, "u.user", ["user_id", "age", "gender", "occupation", "zip"],
                   delimiter="|", strings=("zip",))  # fmt: skip
    _movielens(folder, rating, movies["item_id"], movies["title"], genres)
    write_table(users, folder / "users.parquet")


def movielens_1m(source: Path, folder: Path) -> None:
    """Convert ``ratings.dat``, ``movies.dat`` and ``users.dat`` (``::`` between fields, Latin-1).

    ``seq_pos`` is the place in the user's history, ties in time by published row.

    Args:
        source: Folder or archive with the published files.
        folder: Where the parquet files go.
    """
    split: dict[str, Any] = {"delimiter": "::", "encoding": "latin-1"}
    rating = read_small(
        source, "ratings.dat", ["user_id", "item_id", "rating", "timestamp"], **split
    )
    movies = read_small(source, "movies.dat", ["item_id", "title", "genres"], **split).to_pandas()
    users = read_small(source, "users.dat", ["user_id", "gender", "age", "occupation", "zip"],
                   strings=("zip",), **split)  # fmt: skip
    genres = [text.split("|") for text in movies["genres"]]
    _movielens(folder, rating, movies["item_id"], movies["title"], genres)
    write_table(users, folder / "users.parquet")


def movielens_20m(source: Path, folder: Path) -> None:
    """Convert ``ratings.csv`` and ``movies.csv``; half stars stay in ``rating``.

    Args:
        source: Folder or archive with the published files.
        folder: Where the parquet files go.
    """
    columns = {"userId": "user_id", "movieId": "item_id", "rating": "rating",
               "timestamp": "timestamp"}  # fmt: skip
    convert_batches(
        source, "ratings.csv", folder / "events.parquet", list(columns), _movielens_20m_rows
    )
    with open_published(source, "movies.csv") as file:
        movies = pd.read_csv(file)
    need_columns(movies.columns, ["movieId", "title", "genres"], "movies.csv")
    genres = [[] if text.startswith("(no") else text.split("|") for text in movies["genres"]]
    _movie_items(folder, movies["movieId"], movies["title"], genres)


def amazon_2014(source: Path, folder: Path, *, category: str) -> None:
    """Convert ``reviews_<category>_5.json.gz`` and, where present, ``meta_<category>.json.gz``.

    The metadata lines are Python literals, not JSON; they are parsed as literals, never run.
    ``seq_pos`` is the place in the user's history, ties in time (days) by published row.

    Args:
        source: Folder with the published files.
        folder: Where the parquet files go.
        category: Name inside the file names, such as ``Beauty``.
    """
    name = f"reviews_{category}_5.json"
    with open_published(source, name) as file:
        keys = ("reviewerID", "asin", "unixReviewTime", "overall")
        rows = [[json.loads(line)[key] for key in keys] for line in file if line.strip()]
    users, items, times, stars = zip(*rows, strict=True) if rows else ((), (), (), ())
    user, time = np.array(users, dtype=object), np.array(times, np.int64)
    events = {
        "user_id": pa.array(users, pa.string()),
        "item_id": pa.array(items, pa.string()),
        "timestamp": time,
        "behavior": pa.array(["review"] * len(rows), pa.string()),
        "rating": pa.array(stars, pa.float64()),
        "domain": pa.array([category] * len(rows), pa.string()),
        "seq_pos": _places(user, time),
    }
    write_table(pa.table(events), folder / "events.parquet")
    known: dict[str, dict[str, Any]] = {}
    if find_published(source, f"meta_{category}.json") is not None:
        wanted = set(items)
        with open_published(source, f"meta_{category}.json") as file:
            for number, line in enumerate(file, start=1):
                value = _literal(line, f"meta_{category}.json", number)
                if value.get("asin") in wanted:
                    known[value["asin"]] = value
    else:
        LOG.warning("meta_%s.json.gz is missing: items come without any description.", category)
    _write_items(folder, [_amazon_item(asin, known.get(asin, {})) for asin in sorted(set(items))],
                 domain=category)  # fmt: skip


def retailrocket(source: Path, folder: Path) -> None:
    """Convert ``events.csv``, ``item_properties_part1/2.csv`` and ``category_tree.csv``.

    Times become seconds; view, addtocart and transaction become view, cart and order. An item's
    categories are the path to the first category it is known by: later ones would tell the future.

    Args:
        source: Folder or archive with the published files.
        folder: Where the parquet files go.
    """
    columns = ["timestamp", "visitorid", "event", "itemid"]
    convert_batches(source, "events.csv", folder / "events.parquet", columns, _retailrocket_rows)
    with open_published(source, "category_tree.csv") as file:
        tree = pd.read_csv(file)
    need_columns(tree.columns, ["categoryid", "parentid"], "category_tree.csv")
    parent = {int(c): int(p) for c, p in tree[["categoryid", "parentid"]].dropna().to_numpy()}
    first: dict[int, tuple[int, int]] = {}
    for name in ("item_properties_part1.csv", "item_properties_part2.csv"):
        for batch in read_batches(source, name, ["timestamp", "itemid", "property", "value"]):
            batch = batch.filter(pc.equal(batch["property"], "categoryid"))
            rows = zip(
                *(batch[key].to_pylist() for key in ("itemid", "timestamp", "value")), strict=True
            )
            for item, time, value in rows:
                first[item] = min(first.get(item, (time, int(value))), (time, int(value)))
    items = sorted(
        set(
            pq.read_table(folder / "events.parquet", columns=["item_id"])["item_id"]
            .unique()
            .to_pylist()
        )
        | set(first)
    )
    _write_items(
        folder,
        [
            {"item_id": i, "categories": _path(first[i][1], parent) if i in first else []}
            for i in items
        ],
        item_type=pa.int64(),
    )


def taobao(source: Path, folder: Path) -> None:
    """Convert ``UserBehavior.csv`` (no header: user, item, category, behavior, seconds), streamed.

    pv, cart, fav and buy become click, cart, favorite and order. Rows outside the stated period
    (25 November to 3 December 2017, UTC+8) are dropped and counted in the log.

    Args:
        source: Folder or archive with the published file.
        folder: Where the parquet files go.
    """
    columns = ["user_id", "item_id", "category_id", "behavior", "timestamp"]
    target = folder / "events.parquet"
    read, kept = convert_batches(
        source, "UserBehavior.csv", target, columns, _taobao_rows, header=False
    )
    if read > kept:
        LOG.warning(
            "%d of %d rows lie outside the stated period and were dropped.", read - kept, read
        )
    pairs = pl.scan_parquet(target).group_by("item_id").agg(pl.col("category_id").min())
    found = pairs.sort("item_id").collect(engine="streaming")
    items = [
        {"item_id": item, "categories": [str(category)]} for item, category in found.iter_rows()
    ]
    _write_items(folder, items, item_type=pa.int64())


def online_retail(source: Path, folder: Path) -> None:
    """Convert the invoices (``data.csv``, ``Online Retail.csv`` or ``OnlineRetail.csv``).

    Rows without a customer are dropped and counted in the log. An invoice number that begins with C
    is a cancellation. Title = most frequent description, price = median unit price above 0.

    Args:
        source: Folder or archive with the published file.
        folder: Where the parquet files go.

    Raises:
        ValueError: If only the spreadsheet is there.
    """
    names = ("data.csv", "Online Retail.csv", "OnlineRetail.csv")
    name = next((name for name in names if find_published(source, name) is not None), None)
    if name is None:
        raise ValueError(
            f"{source} must hold one of {list(names)}; save a spreadsheet as CSV first."
        )
    with open_published(source, name) as file:
        rows = pd.read_csv(file, encoding="latin-1", dtype={"InvoiceNo": str, "StockCode": str})
    need_columns(rows.columns, ["InvoiceNo", "StockCode", "Description", "Quantity", "InvoiceDate",
                         "UnitPrice", "CustomerID", "Country"], name)  # fmt: skip
    known = rows[rows["CustomerID"].notna()]
    LOG.info("%d of %d rows have no customer and were dropped.", len(rows) - len(known), len(rows))
    user = known["CustomerID"].astype(float).astype(int).astype(str)
    time = pd.to_datetime(known["InvoiceDate"], format="mixed").to_numpy("datetime64[s]")
    cancelled = known["InvoiceNo"].str.upper().str.startswith("C")
    events = {
        "user_id": pa.array(user, pa.string()),
        "item_id": pa.array(known["StockCode"], pa.string()),
        "timestamp": time.astype(np.int64),
        "behavior": pa.array(np.where(cancelled, "cancel", "order"), pa.string()),
        "order_id": pa.array(known["InvoiceNo"], pa.string()),
        "quantity": known["Quantity"].to_numpy(np.int64),
        "unit_price": known["UnitPrice"].to_numpy(np.float64),
    }
    write_table(pa.table(events), folder / "events.parquet")
    items = []
    for code, group in known.groupby("StockCode", sort=True):
        words = group["Description"].dropna().str.strip().value_counts()
        title = min(words[words == words.max()].index) if len(words) else None
        price = group.loc[group["UnitPrice"] > 0, "UnitPrice"].median()
        items.append(
            {
                "item_id": code,
                "title": title,
                "text": title,
                "price": None if np.isnan(price) else float(price),
            }
        )
    _write_items(folder, items)
    people = pd.DataFrame({"user_id": user, "country": known["Country"]}).groupby("user_id").first()
    write_table(
        pa.Table.from_pandas(people.reset_index(), preserve_index=False), folder / "users.parquet"
    )


def _movielens_20m_rows(batch: pa.Table) -> pa.Table:
    return pa.table(
        {
            "user_id": batch["userId"],
            "item_id": batch["movieId"],
            "timestamp": batch["timestamp"],
            "behavior": pa.repeat(pa.scalar("rating"), batch.num_rows),
            "rating": batch["rating"].cast(pa.float32()),
        }
    )


def _retailrocket_rows(batch: pa.Table) -> pa.Table:
    return pa.table(
        {
            "user_id": batch["visitorid"],
            "item_id": batch["itemid"],
            "timestamp": pc.divide(batch["timestamp"], 1000),
            "behavior": _rename(batch["event"], {"addtocart": "cart", "transaction": "order"}),
        }
    )


def _taobao_rows(batch: pa.Table) -> pa.Table:
    time = batch["timestamp"]
    inside = pc.and_(pc.greater_equal(time, TAOBAO_FIRST), pc.less_equal(time, TAOBAO_LAST))
    batch = batch.filter(inside)
    names = {"pv": "click", "fav": "favorite", "buy": "order"}
    place = batch.schema.get_field_index("behavior")
    return batch.set_column(place, "behavior", _rename(batch["behavior"], names))


def _rename(column: pa.ChunkedArray, names: dict[str, str]) -> pa.ChunkedArray:
    for old, new in names.items():
        column = pc.if_else(pc.equal(column, old), new, column)
    return column


def _movielens(
    folder: Path, rating: pa.Table, item: pd.Series, title: pd.Series, genres: list[list[str]]
) -> None:
    user, time = rating["user_id"].to_numpy(), rating["timestamp"].to_numpy()
    events = {
        "user_id": user,
        "item_id": rating["item_id"],
        "timestamp": time,
        "behavior": pa.repeat(pa.scalar("rating"), len(user)),
        "rating": rating["rating"],
        "seq_pos": _places(user, time),
    }
    write_table(pa.table(events), folder / "events.parquet")
    _movie_items(folder, item, title, genres)


def _movie_items(folder: Path, item: pd.Series, title: pd.Series, genres: list[list[str]]) -> None:
    year = pd.to_numeric(title.str.extract(r"\((\d{4})\)\s*$")[0]).astype("Int16")
    text = [f"{t}. Genres: {', '.join(g)}" if g else t for t, g in zip(title, genres, strict=True)]
    rows = zip(item.tolist(), title, genres, text, strict=True)
    items = [
        dict(zip(("item_id", "title", "categories", "text"), row, strict=True)) for row in rows
    ]
    _write_items(folder, items, item_type=pa.int64(), year=pa.array(year, pa.int16()))


def _amazon_item(asin: str, value: dict[str, Any]) -> dict[str, Any]:
    categories = list(dict.fromkeys(name for path in value.get("categories", []) for name in path))
    words = [value.get("title"), value.get("brand"), *categories, value.get("description")]
    return {
        "item_id": asin,
        "title": value.get("title"),
        "categories": categories,
        "brand": value.get("brand") or None,
        "price": float(value["price"]) if value.get("price") else None,
        "text": ". ".join(str(word) for word in words if word) or None,
    }


def _literal(line: bytes, name: str, number: int) -> dict[str, Any]:
    """A line of JSON or of a Python literal."""
    text = line.decode("utf-8")
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError) as error:
            raise ValueError(f"{name} line {number} cannot be parsed: {error}.") from None
    if not isinstance(value, dict):
        raise ValueError(f"{name} line {number} must be an object, not {value!r}.")
    return value


def _places(user: np.ndarray[Any, Any], time: np.ndarray[Any, Any]) -> pa.Array:
    """Place of each event in its user's history; ties in time by row."""
    code = pd.factorize(user)[0]
    order = np.lexsort((time, code))
    start = np.searchsorted(code[order], code[order])
    place = np.empty(len(order), np.int32)
    place[order] = np.arange(len(order)) - start
    return pa.array(place)


def _path(category: int, parent: dict[int, int]) -> list[str]:
    """Category ids from the root down."""
    found = [category]
    while (up := parent.get(found[-1])) is not None and up not in found:
        found.append(up)
    return [str(one) for one in reversed(found)]


def _write_items(
    folder: Path,
    items: Sequence[dict[str, Any]],
    *,
    item_type: pa.DataType | None = None,
    domain: str | None = None,
    **columns: pa.Array,
) -> None:
    schema = ITEM_SCHEMA.set(0, pa.field("item_id", item_type or pa.string()))
    table = pa.Table.from_pylist([{"categories": [], **item} for item in items], schema)
    for name, column in columns.items():
        table = table.append_column(name, column)
    if domain is not None:
        table = table.append_column("domain", pa.repeat(pa.scalar(domain), table.num_rows))
    write_table(table, folder / "items.parquet")
