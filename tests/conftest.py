"""One thread and exact matrix products for every test: small tensors are faster and repeatable."""

from collections.abc import Iterator

import pytest
import torch
from tiny_logs import prepared_tiny, tiny_logs  # noqa: F401  (fixtures)
from tiny_world import rich_dataset, toy_dataset

from recsys.data.dataset import PreparedDataset

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _same_seed_and_precision() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)
    torch.backends.mkldnn.matmul.fp32_precision = "none"


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    """40 users on 12 items: the next item follows from the last one."""
    return toy_dataset(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="session")
def rich(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    """Every kind of feature, a funnel, two domains, untrained items."""
    return rich_dataset(tmp_path_factory.mktemp("rich"))
