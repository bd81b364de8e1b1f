import pytest
from toy_run import Run

from recsys.data.dataset import PreparedDataset
from recsys.model.onepiece import OnePiece
from recsys.training.loop import TrainResult


@pytest.fixture(scope="session")
def whole(
    toy: PreparedDataset, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Run, TrainResult, OnePiece]:
    """The uninterrupted run: 3 epochs of 7 steps."""
    run = Run(toy, tmp_path_factory.mktemp("whole"))
    result, model = run.start()
    assert result.steps == 21
    return run, result, model
