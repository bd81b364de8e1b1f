import torch

from recsys.training.seed import keep_freed_memory, seed_everything, set_precision


def test_one_seed_repeats_every_draw() -> None:
    seed_everything(3)
    first = torch.randn(4)
    seed_everything(3)
    assert torch.equal(torch.randn(4), first)
    seed_everything(4)
    assert not torch.equal(torch.randn(4), first)


def test_float32_products_are_exact_to_float32_and_bf16_ones_close() -> None:
    a, b = torch.randn(64, 128), torch.randn(128, 64)
    exact = a.double() @ b.double()
    set_precision("float32")
    assert (a @ b - exact).abs().max() < 1e-4
    set_precision("bf16")
    error = (a @ b - exact).abs().max()
    assert error < 1.0  # rounded factors where the processor has the instruction, exact elsewhere
    assert torch.backends.mkldnn.matmul.fp32_precision == "bf16"


def test_asking_the_c_library_to_keep_memory_never_fails() -> None:
    assert keep_freed_memory() in (True, False)
    assert torch.ones(1000, 1000).sum() == 1e6
