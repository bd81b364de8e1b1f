import torch

from recsys.retrieval.index import BruteForceIndex, pad_found, select_rows, top_k


def test_top_k_breaks_ties_by_position_even_at_the_last_place() -> None:
    scores = torch.tensor([[1.0, 5.0, 2.0, 2.0, 5.0, 2.0], [0.0, 0.0, 0.0, 0.0, 0.0, 0.0]])
    best, position = top_k(scores, 3)
    assert best.tolist() == [[5.0, 5.0, 2.0], [0.0, 0.0, 0.0]]
    assert position.tolist() == [[1, 4, 2], [0, 1, 2]]


def test_top_k_equals_a_stable_sort_on_scores_full_of_ties() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(0, 4, (20, 30), generator=generator).float()
    scores[scores == 0] = float("-inf")
    expected, order = scores.sort(dim=1, descending=True, stable=True)
    for k in (1, 4, 29, 30, 31):
        best, position = top_k(scores.clone(), k)
        assert torch.equal(best, expected[:, :k])
        found = best.isfinite()
        assert torch.equal(position[found], order[:, :k][found])


def test_blocks_and_one_product_agree_on_ties_across_blocks() -> None:
    generator = torch.Generator().manual_seed(1)
    vectors = torch.randint(-1, 2, (50, 2), generator=generator).float()
    queries = torch.randint(-1, 2, (6, 2), generator=generator).float()
    recommendable = torch.rand(50, generator=generator) < 0.8
    whole = BruteForceIndex(vectors, recommendable).search(queries, 7)
    for block_scores in (1, 60, 100):
        blocked = BruteForceIndex(vectors, recommendable, block_scores=block_scores)
        for found, expected in zip(blocked.search(queries, 7), whole, strict=True):
            assert torch.equal(found, expected)


def test_a_stretch_of_rows_is_a_view() -> None:
    values = torch.arange(10.0).view(5, 2)
    assert select_rows(values, torch.tensor([1, 2, 3])).data_ptr() == values[1:].data_ptr()
    assert torch.equal(select_rows(values, torch.tensor([0, 4])), values[[0, 4]])


def test_pad_found_marks_what_is_missing() -> None:
    scores, ids = pad_found(torch.tensor([[1.0, float("-inf")]]), torch.tensor([[7, 9]]), 3)
    assert scores.tolist() == [[1.0, float("-inf"), float("-inf")]]
    assert ids.tolist() == [[7, -1, -1]]
