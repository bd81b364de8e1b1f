from datetime import UTC, datetime

import torch

from recsys.context.descriptors import situation


def test_hours_and_weekdays_are_those_of_the_calendar() -> None:
    times = torch.randint(0, 2**31, (50,))
    found = situation(times, has_time=True)
    dates = [datetime.fromtimestamp(t, UTC) for t in times.tolist()]
    assert found["hour"].tolist() == [d.hour + 1 for d in dates]
    assert found["weekday"].tolist() == [d.isoweekday() for d in dates]


def test_an_order_column_tells_no_situation() -> None:
    found = situation(torch.tensor([[7, 8]]), has_time=False)
    assert all(value.tolist() == [[0, 0]] for value in found.values())
