"""Converters, each on a hand-made file in the published format."""

import gzip
import json
import zipfile
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from recsys.data import published


def read(folder: Path, table: str = "events") -> pd.DataFrame:
    return pq.read_table(folder / f"{table}.parquet").to_pandas()


def save(folder: Path, **files: str) -> None:
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_bytes(text.encode("latin-1"))


def test_movielens_1m_reads_double_colons_and_latin_1(tmp_path: Path) -> None:
    save(
        tmp_path,
        ratings__dat="1::20::5::978300760\n1::10::3::978300700\n2::10::4::978300000\n"
        "1::30::2::978300760\n",
        movies__dat="10::Amélie (2001)::Comedy|Romance\n20::Heat, The (1995)::Action\n"
        "30::No Year::Drama\n",
        users__dat="1::F::1::10::04867\n2::M::56::16::70072-12\n",
    )
    published.movielens_1m(tmp_path, tmp_path)
    events, items, users = (read(tmp_path, name) for name in ("events", "items", "users"))
    assert events.item_id.tolist() == [20, 10, 10, 30]
    assert events.seq_pos.tolist() == [1, 0, 0, 2]  # by time, ties by row
    assert events.rating.tolist() == [5, 3, 4, 2]
    assert set(events.behavior) == {"rating"}
    assert items.title.tolist()[0] == "Amélie (2001)"
    assert items.categories.tolist()[0].tolist() == ["Comedy", "Romance"]
    assert items.year.tolist()[:2] == [2001, 1995]
    assert pd.isna(items.year[2])
    assert items.text[1] == "Heat, The (1995). Genres: Action"
    assert users.zip.tolist() == ["04867", "70072-12"]


def test_movielens_100k_reads_tabs_pipes_and_flags(tmp_path: Path) -> None:
    flags = ["0"] * 19
    flags[5] = flags[8] = "1"
    save(
        tmp_path,
        u__data="196\t1\t3\t881250949\n22\t1\t1\t878887116\n",
        u__item="1|Cité (1995)|01-Jan-1995||http://x|" + "|".join(flags) + "\n",
        u__user="22|40|M|writer|T8H1N\n196|49|F|other|01234\n",
    )
    published.movielens_100k(tmp_path, tmp_path)
    assert read(tmp_path).user_id.tolist() == [196, 22]
    items = read(tmp_path, "items")
    assert items.categories[0].tolist() == ["Comedy", "Drama"]
    assert items.title[0] == "Cité (1995)"
    assert read(tmp_path, "users").zip.tolist() == ["T8H1N", "01234"]


def test_movielens_20m_reads_csv_inside_the_archive(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "ml-20m.zip", "w") as archive:
        archive.writestr(
            "ml-20m/ratings.csv", "userId,movieId,rating,timestamp\n1,2,3.5,1112486027\n"
        )
        archive.writestr(
            "ml-20m/movies.csv",
            'movieId,title,genres\n2,"Jumanji, again (1995)",Adventure|Children\n'
            "3,Short,(no genres listed)\n",
        )
    published.movielens_20m(tmp_path, tmp_path / "out")
    event = read(tmp_path / "out").iloc[0]
    assert (event.user_id, event.item_id, event.rating) == (1, 2, 3.5)
    items = read(tmp_path / "out", "items")
    assert items.title[0] == "Jumanji, again (1995)"
    assert [list(c) for c in items.categories] == [["Adventure", "Children"], []]


def test_amazon_reads_gzipped_json_and_python_literals(tmp_path: Path) -> None:
    reviews = [
        {"reviewerID": "A1", "asin": "B2", "overall": 5.0, "unixReviewTime": 1390000000},
        {"reviewerID": "A1", "asin": "B1", "overall": 4.0, "unixReviewTime": 1380000000},
    ]
    meta = "{'asin': 'B1', 'title': \"Bob's cream\", 'price': 9.5, 'brand': 'Acme', " \
        "'categories': [['Beauty', 'Skin'], ['Beauty', 'Face']]}\n{'asin': 'unused'}\n"  # fmt: skip
    with gzip.open(tmp_path / "reviews_Beauty_5.json.gz", "wt") as file:
        file.write("\n".join(json.dumps(review) for review in reviews) + "\n")
    with gzip.open(tmp_path / "meta_Beauty.json.gz", "wt") as file:
        file.write(meta)
    published.amazon_2014(tmp_path, tmp_path, category="Beauty")
    events, items = read(tmp_path), read(tmp_path, "items")
    assert events.seq_pos.tolist() == [1, 0]
    assert events.domain.tolist() == ["Beauty", "Beauty"]
    assert items.item_id.tolist() == ["B1", "B2"]
    assert items.title[0] == "Bob's cream"
    assert items.categories[0].tolist() == ["Beauty", "Skin", "Face"]
    assert items.price[0] == 9.5
    assert items.text[0] == "Bob's cream. Acme. Beauty. Skin. Face"
    assert pd.isna(items.title[1])


def test_amazon_metadata_is_never_run_as_code(tmp_path: Path) -> None:
    (tmp_path / "reviews_X_5.json").write_text("")
    (tmp_path / "meta_X.json").write_text("__import__('os').getcwd()\n")
    with pytest.raises(ValueError, match=r"meta_X\.json line 1"):
        published.amazon_2014(tmp_path, tmp_path, category="X")


def test_retailrocket_keeps_the_first_category_as_a_path(tmp_path: Path) -> None:
    save(
        tmp_path,
        events__csv="timestamp,visitorid,event,itemid,transactionid\n"
        "1433221332117,7,view,100,\n1433221999827,7,addtocart,100,\n"
        "1433222276276,7,transaction,100,4\n1433222276277,8,view,300,\n",
        item_properties_part1__csv="timestamp,itemid,property,value\n"
        "1435460400000,100,categoryid,12\n1435460400000,100,790,n15360.000\n",
        item_properties_part2__csv="timestamp,itemid,property,value\n"
        "1431226800000,100,categoryid,11\n1431226800000,200,categoryid,99\n",
        category_tree__csv="categoryid,parentid\n11,5\n5,1\n1,\n12,5\n",
    )
    published.retailrocket(tmp_path, tmp_path)
    events = read(tmp_path)
    assert events.behavior.tolist() == ["view", "cart", "order", "view"]
    assert events.timestamp[0] == 1433221332
    items = read(tmp_path, "items").set_index("item_id").categories.map(list)
    assert items.to_dict() == {100: ["1", "5", "11"], 200: ["99"], 300: []}


def test_taobao_renames_behaviours_and_drops_times_outside_the_period(tmp_path: Path) -> None:
    save(
        tmp_path,
        UserBehavior__csv="1,2268318,2520377,pv,1511544070\n1,2333346,2520771,buy,1511561733\n"
        "2,5,9,fav,1511561734\n2,5,9,cart,1511561735\n2,6,9,pv,-1\n",
    )
    published.taobao(tmp_path, tmp_path)
    events = read(tmp_path)
    assert events.behavior.tolist() == ["click", "order", "favorite", "cart"]
    items = read(tmp_path, "items")
    assert dict(zip(items.item_id, items.categories.map(list), strict=True)) == {
        5: ["9"],
        2268318: ["2520377"],
        2333346: ["2520771"],
    }


@pytest.mark.parametrize("when", ["12/1/2010 8:26", "2010-12-01 08:26:00"])
def test_online_retail_tells_orders_from_cancellations(tmp_path: Path, when: str) -> None:
    head = "InvoiceNo,StockCode,Description,Quantity,InvoiceDate,UnitPrice,CustomerID,Country\n"
    (tmp_path / "data.csv").write_text(
        head
        + f"536365,85123A,WHITE HEART,6,{when},2.55,17850.0,United Kingdom\n"
        + f"C536379,85123A,white?,-1,{when},2.55,17850.0,United Kingdom\n"
        + f"536366,85123A,WHITE HEART,6,{when},3.55,,United Kingdom\n"
    )
    published.online_retail(tmp_path, tmp_path)
    events = read(tmp_path)
    assert events.behavior.tolist() == ["order", "cancel"]
    assert events.user_id.tolist() == ["17850", "17850"]
    assert events.timestamp[0] == 1291191960
    assert events.quantity.tolist() == [6, -1]
    assert read(tmp_path, "items").price.tolist() == [2.55]
    assert read(tmp_path, "users").to_dict("list") == {
        "user_id": ["17850"],
        "country": ["United Kingdom"],
    }


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must hold u\.data"):
        published.movielens_100k(tmp_path, tmp_path)
    with pytest.raises(ValueError, match=r"data\.csv.*spreadsheet"):
        published.online_retail(tmp_path, tmp_path)


def test_other_columns_are_named(tmp_path: Path) -> None:
    save(tmp_path, ratings__csv="user,item\n1,2\n", movies__csv="a,b\n1,2\n")
    with pytest.raises(ValueError, match=r"ratings\.csv must have the columns.*userId"):
        published.movielens_20m(tmp_path, tmp_path)
    save(tmp_path, ratings__csv="userId,movieId,rating,timestamp\n1,2,3,4\n")
    with pytest.raises(ValueError, match=r"movies\.csv lacks the columns.*movieId"):
        published.movielens_20m(tmp_path, tmp_path)
    save(tmp_path, UserBehavior__csv="1,2,x\n")
    with pytest.raises(ValueError, match=r"UserBehavior\.csv must have the columns"):
        published.taobao(tmp_path, tmp_path)
