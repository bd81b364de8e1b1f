import pytest

from recsys.model.config import DataSizes, EncoderConfig, ReasonerConfig
from recsys.schema import Manifest


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (EncoderConfig, {"width": 10, "num_heads": 4}, r"width \(10\).*num_heads \(4\)"),
        (EncoderConfig, {"max_history": 0}, r"max_history \(0\)"),
        (EncoderConfig, {"num_layers": 0}, r"num_layers \(0\) must be at least 1"),
        (EncoderConfig, {"temperature": 0.0}, r"temperature \(0\.0\) must be above 0"),
        (EncoderConfig, {"dropout": 1.0}, r"dropout \(1\.0\)"),
        (EncoderConfig, {"id_dropout": 1.5}, r"id_dropout \(1\.5\)"),
        (EncoderConfig, {"width": 6, "num_heads": 2}, r"width / num_heads \(3\) must be even"),
        (ReasonerConfig, {"num_steps": -1}, r"num_steps \(-1\)"),
        (ReasonerConfig, {"step_rank": -2}, r"step_rank \(-2\) must be at least 0"),
        (ReasonerConfig, {"num_layers": 0}, r"num_layers \(0\) at least 1"),
    ],
)
def test_values_out_of_range_are_refused(kind: type, values: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(**values)


def test_learned_positions_need_no_even_heads() -> None:
    assert EncoderConfig(width=6, num_heads=2, positions="learned").width == 6


def test_the_hidden_width_is_eight_thirds_of_the_width_in_eights() -> None:
    assert EncoderConfig(width=64).hidden_width == 176  # 170.7, rounded up to 22 * 8
    assert EncoderConfig(width=64, hidden=100).hidden_width == 100


def test_sizes_follow_from_the_manifest() -> None:
    manifest = Manifest(
        num_items=9, num_trained_items=5, behaviors=("a", "b"), funnel=("a", "b"), has_time=False
    )
    sizes = DataSizes.of(manifest)
    assert (sizes.num_id_rows, sizes.num_behaviors, sizes.num_tasks) == (7, 5, 2)
    assert not sizes.has_time
    assert DataSizes.of(Manifest()).num_tasks == 1
