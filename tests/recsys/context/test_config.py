import pytest

from recsys.context.config import ContextConfig


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_history": 0}, r"max_history \(0\).*must be at least 1"),
        ({"session_gap_s": 0}, r"session_gap_s \(0\) must be at least 1"),
        ({"requests_per_row": -1}, r"requests_per_row \(-1\) at least 0"),
    ],
)
def test_sizes_out_of_range_are_refused(values: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ContextConfig(**values)  # type: ignore[arg-type]
