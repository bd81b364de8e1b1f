from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_world import EVENT_FEATURES, START, User, write_dataset
from torch import Tensor

from recsys.batch import History
from recsys.context.config import ContextConfig
from recsys.context.descriptors import asked_at, situation_features, situation_values
from recsys.context.history import Window, gap_bucket, read_window
from recsys.data.dataset import PreparedDataset
from recsys.nn.embedding import FeatureEncoder
from recsys.schema import ColumnSpec, Feature, Manifest

ALL = ("hour", "weekday", "month", "gap", "session", "domain")
DECLARED = ColumnSpec(event_features=("device", "amount"), situation=("device", "amount"))
SHOP = Manifest(columns=DECLARED, event_features=EVENT_FEATURES, domains=("shop", "news"))
CONFIG = ContextConfig(situation=ALL)
MINUTE = 60


def history_of(*times: list[int]) -> History:
    """Events at the given seconds after the start, a row a list; what is padded is junk."""
    width = max(1, *map(len, times))
    padded = torch.tensor([[*row, *[7] * (width - len(row))] for row in times])
    real = torch.arange(width) < torch.tensor([len(row) for row in times])[:, None]
    return History(
        item=torch.where(real, 2, 0),
        behavior=torch.where(real, 3, 0),
        timestamp=torch.where(real, padded + START, 0),
        gap=torch.zeros_like(padded),
        block=real.long(),
        lengths=real.sum(dim=1),
    )


def told(
    history: History,
    cut: list[list[int]],
    after: list[list[int]],
    *,
    manifest: Manifest = SHOP,
    config: ContextConfig = CONFIG,
    asked: dict[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """The situation of requests some seconds after the start."""
    timestamp, cuts = torch.tensor(after) + START, torch.tensor(cut)
    last = history.timestamp.gather(1, (cuts - 1).clamp(min=0))
    gap = torch.where(cuts > 0, gap_bucket(timestamp - last), 0)
    return situation_values(
        manifest, config, timestamp=timestamp, gap=gap, history=history, cut=cuts,
        asked=asked or {},
    )  # fmt: skip


# --- what the times tell ---------------------------------------------------------------------


def test_hours_weekdays_and_months_are_those_of_the_calendar() -> None:
    times = torch.randint(-(2**31), 2**32, (1, 200)) - START
    times = torch.cat((times, torch.tensor([[-START]])), dim=1)  # 1970-01-01, 00:00
    found = told(history_of([0]), torch.ones_like(times).tolist(), times.tolist())
    dates = [datetime.fromtimestamp(t + START, UTC) for t in times[0].tolist()]
    assert found["hour"][0].tolist() == [d.hour + 1 for d in dates]
    assert found["weekday"][0].tolist() == [d.isoweekday() for d in dates]
    assert found["month"][0].tolist() == [d.month for d in dates]


def test_the_gap_is_the_one_of_the_request() -> None:
    found = told(history_of([0, 60]), [[1, 2, 0]], [[100, 100, 100]])
    assert found["gap"].tolist() == [[1 + 6, 1 + 5, 0]]


@pytest.mark.parametrize(
    ("after", "cuts", "codes"),
    [
        # Three events, a pause of an hour, four events: 1, 2, 3, 4 of the running one are visible.
        ([91 * MINUTE] * 4, [4, 5, 6, 7], [2, 3, 3, 4]),
        ([20 * MINUTE] * 3, [1, 2, 3], [2, 3, 3]),
        # Half an hour after the last visible event is still the same session, a second more is not.
        ([20 * MINUTE + 1800, 20 * MINUTE + 1801], [3, 3], [3, 1]),
        # Nothing visible: whatever runs has just begun.
        ([0], [0], [1]),
    ],
)
def test_the_session_tells_how_much_of_the_running_one_was_seen(
    after: list[int], cuts: list[int], codes: list[int]
) -> None:
    minutes = [0, 10, 20, 80, 85, 90, 91]
    found = told(history_of([m * MINUTE for m in minutes]), [cuts], [after])
    assert found["session"].tolist() == [codes]


def test_long_sessions_are_told_apart_by_powers_of_two() -> None:
    cuts = [1, 2, 3, 4, 7, 8, 15, 16, 200]
    found = told(history_of(list(range(200))), [cuts], [[200] * len(cuts)])
    assert found["session"].tolist() == [[2, 3, 3, 4, 4, 5, 5, 6, 9]]


def test_the_pause_that_ends_a_session_is_declared() -> None:
    config = replace(CONFIG, session_gap_s=59)
    found = told(history_of([0, 60, 61]), [[2, 3]], [[61, 62]], config=config)
    assert found["session"].tolist() == [[2, 3]]


def test_an_order_column_tells_nothing_of_the_moment() -> None:
    ordinals = replace(SHOP, has_time=False)
    found = told(history_of([0, 1, 2]), [[1, 3]], [[1, 3]], manifest=ordinals)
    for name in ("hour", "weekday", "month", "gap", "session"):
        assert found[name].tolist() == [[0, 0]], name
    names = [f.name for f in situation_features(ordinals, CONFIG)]
    assert names == ["domain", "device", "amount"]


# --- what the request brings along -----------------------------------------------------------


def test_declared_columns_and_the_domain_are_told_as_they_are_asked() -> None:
    asked = {
        "device": torch.tensor([[2, 3]], dtype=torch.int32),
        "amount": torch.tensor([[0.5, -1.0]]),
        "domain": torch.tensor([[3, 2]], dtype=torch.int16),
    }
    found = told(history_of([0]), [[1, 1]], [[1, 2]], asked=asked)
    assert {name: found[name].tolist() for name in asked} == {
        "device": [[2, 3]], "amount": [[0.5, -1.0]], "domain": [[3, 2]],
    }  # fmt: skip
    kinds = [found[name].dtype for name in asked]
    assert kinds == [torch.int64, torch.float32, torch.int64]


def test_what_a_request_does_not_bring_along_is_unknown() -> None:
    found = told(history_of([0]), [[1]], [[1]])
    assert {name: found[name].tolist() for name in ("device", "amount", "domain")} == {
        "device": [[1]], "amount": [[0.0]], "domain": [[1]],
    }  # fmt: skip
    assert found["device"].dtype == torch.int64
    assert found["amount"].dtype == torch.float32


def test_every_feature_has_values_within_its_rows_and_can_be_embedded() -> None:
    times = [[t * 40 * MINUTE for t in range(400)]]
    asked = {"device": torch.full((1, 3), 3), "domain": torch.full((1, 3), 3)}
    found = told(history_of(*times), [[0, 1, 400]], [[0, 10**9, 2 * 10**9]], asked=asked)
    features = situation_features(SHOP, CONFIG)
    assert {f.name for f in features} == set(found)
    for feature in features:
        if feature.kind == "categorical":
            assert 0 <= int(found[feature.name].min()) <= int(found[feature.name].max())
            assert int(found[feature.name].max()) < feature.rows, feature.name
    encoder = FeatureEncoder(4, features)
    embedded = encoder(None, {name: value.flatten() for name, value in found.items()})
    assert embedded.shape == (3, 4)


def test_only_what_is_named_is_told() -> None:
    config = ContextConfig(situation=("month",))
    plain = Manifest()
    assert [f.name for f in situation_features(plain, config)] == ["month"]
    assert list(told(history_of([0]), [[1]], [[1]], manifest=plain, config=config)) == ["month"]
    assert situation_features(plain, ContextConfig(situation=())) == ()


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        (replace(SHOP, domains=()), r"names 'domain', and the logs have none: declare columns"),
        (
            replace(
                SHOP,
                columns=ColumnSpec(event_features=("hour",), situation=("hour",)),
                event_features=(Feature(name="hour", kind="numeric"),),
            ),
            r"names 'hour', which situation \['hour', .*names too: leave one of them out",
        ),
    ],
)
def test_what_cannot_be_told_is_refused(manifest: Manifest, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        situation_features(manifest, CONFIG)


# --- nothing from the future -------------------------------------------------------------------


@dataclass(frozen=True)
class Asked:
    """A user asked after three of five events, the fourth being the event asked for."""

    folder: Path

    def dataset(self, name: str, changes: dict[str, Any]) -> PreparedDataset:
        times = [START, START + 60, START + 120, START + 300, START + 9000]
        user = User(
            item=[2, 3, 4, 5, 6],
            train_end=5,
            timestamp=times,
            behavior=[3, 3, 4, 3, 4],
            domain=[2, 2, 3, 3, 2],
            event={"device": [1, 2, 3, 2, 1], "amount": [0.1, 0.2, 0.3, 0.4, 0.5]},
        )
        return write_dataset(
            self.folder / name,
            [replace(user, **changes)],
            num_trained=5,
            behaviors=("click", "cart"),
            domains=("shop", "news"),
            event_features=EVENT_FEATURES,
            columns=ColumnSpec(event_features=("device", "amount"), situation=("device",)),
        )

    def told(self, name: str = "plain", events: int = 5, **changes: Any) -> dict[str, list[Any]]:
        """The situation, read from a window that goes on after the cut as those of training do."""
        dataset = self.dataset(name, changes)
        bucket, manifest = dataset.buckets[0], dataset.manifest
        window = Window(torch.tensor([0]), torch.tensor([events]))
        history, _ = read_window(bucket, window, has_time=True)
        place, cut = torch.tensor([[3]]), torch.tensor([[3]])
        timestamp = torch.tensor([[START + 300]])
        found = situation_values(
            manifest, CONFIG, timestamp=timestamp, gap=gap_bucket(torch.tensor([[180]])),
            history=history, cut=cut, asked=asked_at(bucket, manifest, place),
        )  # fmt: skip
        return {key: value.flatten().tolist() for key, value in found.items()}


@pytest.mark.parametrize(
    "changes",
    [
        {"item": [2, 3, 4, 6, 2]},
        {"behavior": [3, 3, 4, 4, 3]},
        {"timestamp": [START, START + 60, START + 120, START + 10**6, START + 10**7]},
        {"domain": [2, 2, 3, 3, 3]},
        {"event": {"device": [1, 2, 3, 2, 3], "amount": [0.1, 0.2, 0.3, 9.0, 9.0]}},
    ],
    ids=["items", "behaviors", "times", "domains", "features"],
)
def test_nothing_after_the_cut_changes_the_situation_but_what_is_declared(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    asked = Asked(tmp_path)
    assert asked.told() == asked.told(events=3)  # a window that ends at the cut
    assert asked.told() == asked.told("other", **changes)


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"domain": [2, 2, 3, 2, 2]}, "domain"),
        ({"event": {"device": [1, 2, 3, 3, 1], "amount": [0.1, 0.2, 0.3, 0.4, 0.5]}}, "device"),
        (
            {"timestamp": [START - 9999, START - 9000, START + 120, START + 300, START + 9000]},
            "session",
        ),
    ],
)
def test_what_is_known_when_asked_does_change_it(
    tmp_path: Path, changes: dict[str, Any], name: str
) -> None:
    asked = Asked(tmp_path)
    one, other = asked.told(), asked.told("other", **changes)
    assert {key for key in one if one[key] != other[key]} == {name}


# --- properties ----------------------------------------------------------------------------------

ROW = st.tuples(
    st.lists(st.integers(0, 4000), min_size=1, max_size=6), st.integers(0, 6), st.integers(0, 9000)
)
Built = Callable[[], dict[str, Tensor]]


def drawn(rows: list[tuple[list[int], int, int]]) -> tuple[History, list[list[int]], list[Any]]:
    """Rows of pauses between events, a cut and a wait until the request."""
    times = [torch.tensor(pauses).cumsum(0).tolist() for pauses, _, _ in rows]
    cuts = [[min(cut, len(t))] for t, (_, cut, _) in zip(times, rows, strict=True)]
    after = [[t[-1] + wait] for t, (_, _, wait) in zip(times, rows, strict=True)]
    return history_of(*times), cuts, after


@settings(max_examples=25, deadline=None)
@given(rows=st.lists(ROW, min_size=1, max_size=5), data=st.data())
def test_permuted_rows_have_permuted_situations(
    rows: list[tuple[list[int], int, int]], data: st.DataObject
) -> None:
    order = data.draw(st.permutations(range(len(rows))))
    whole, permuted = told(*drawn(rows)), told(*drawn([rows[i] for i in order]))
    for name, value in whole.items():
        assert torch.equal(value[list(order)], permuted[name]), name


@settings(max_examples=25, deadline=None)
@given(rows=st.lists(ROW, min_size=1, max_size=5), junk=st.integers(-(2**40), 2**40))
def test_padding_of_events_and_of_requests_is_neutral(
    rows: list[tuple[list[int], int, int]], junk: int
) -> None:
    history, cuts, after = drawn(rows)
    plain = told(history, cuts, after)
    width = history.item.shape[1]
    wider = history_of(*([*range(width + 2)] for _ in rows))  # two more columns
    timestamp = torch.where(history.is_real, history.timestamp, START + junk)
    timestamp = torch.cat((timestamp, wider.timestamp[:, width:] + junk), dim=1)
    padded = replace(wider, timestamp=timestamp, lengths=history.lengths)
    found = told(padded, [[*c, 0, 0] for c in cuts], [[*a, junk, 0] for a in after])
    for name, value in plain.items():
        assert torch.equal(found[name][:, :1], value), name
