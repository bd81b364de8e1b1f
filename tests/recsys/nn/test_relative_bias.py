import torch

from recsys.nn.relative_bias import RelativeBias, log_bucket


def test_buckets_change_exactly_at_powers_of_two() -> None:
    power = torch.arange(1, 40)
    assert torch.equal(log_bucket(2**power - 1, 64), power)
    assert torch.equal(log_bucket(2**power - 2, 64), power - 1)
    assert log_bucket(torch.tensor([-5, 0, 2**50]), 7).tolist() == [0, 0, 6]


def test_the_bias_is_the_number_of_the_distance_plus_the_number_of_the_time_bucket() -> None:
    bias = RelativeBias(2, max_distance=3, num_time_buckets=4)
    with torch.no_grad():
        bias.by_distance.copy_(torch.arange(8.0).view(4, 2))
        bias.by_time.copy_(100 * torch.arange(8.0).view(4, 2))
    found = bias(
        torch.tensor([[9, 1]]), torch.tensor([[9, 8, 1]]),
        torch.tensor([[1000, 10]]), torch.tensor([[1000, 999, 3]]),
    )  # fmt: skip
    # distances 0 1 8→3 | 0 0 0; seconds 0 1 997 | 0 0 7, buckets 0 1 3 | 0 0 3
    distance, bucket = torch.tensor([[0, 1, 3], [0, 0, 0]]), torch.tensor([[0, 1, 3], [0, 0, 3]])
    for head in range(2):
        assert torch.equal(
            found[0, head], (2 * distance + head + 100 * (2 * bucket + head)).float()
        )


def test_no_time_buckets_read_no_times() -> None:
    bias = RelativeBias(1, 3, 0)
    torch.nn.init.normal_(bias.by_distance)
    torch.nn.init.normal_(bias.by_time)
    at, early = torch.arange(3)[None], torch.zeros(1, 3).long()
    assert torch.equal(bias(at, at, early, early), bias(at, at, early + 10**6, early))
