"""The chunked loss against PyTorch's own, in value and gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from hyperadapter.model import loss
from hyperadapter.model.loss import chunk_rows, label_smoothed_cross_entropy

Sample = tuple[Tensor, Tensor, Tensor]


def sample(num: int, vocab: int, width: int, seed: int, scale: float = 1.0) -> Sample:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(num, width, generator=generator).mul_(scale).requires_grad_()
    weight = torch.randn(vocab, width, generator=generator).requires_grad_()
    target = torch.randint(vocab, (num,), generator=generator)
    return hidden, weight, target


def reference(hidden: Tensor, weight: Tensor, target: Tensor, smoothing: float) -> Tensor:
    return F.cross_entropy(hidden @ weight.t(), target, label_smoothing=smoothing, reduction="sum")


@given(
    st.integers(1, 9),
    st.integers(2, 7),
    st.integers(1, 5),
    st.sampled_from([0.0, 0.1, 0.9]),
    st.integers(1, 10),
)
def test_equals_cross_entropy_for_any_chunks(
    num: int, vocab: int, width: int, smoothing: float, rows: int
) -> None:
    hidden, weight, target = sample(num, vocab, width, seed=num * vocab)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loss, "chunk_rows", lambda *_: rows)
        value, nll = label_smoothed_cross_entropy(hidden, weight, target, smoothing)
        grads = torch.autograd.grad(value * 3, [hidden, weight])
    wanted = reference(hidden, weight, target, smoothing)
    torch.testing.assert_close(value, wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(nll, reference(hidden, weight, target, 0.0), rtol=1e-5, atol=1e-5)
    wanted_grads = torch.autograd.grad(wanted * 3, [hidden, weight])
    for grad, wanted_grad in zip(grads, wanted_grads, strict=True):
        torch.testing.assert_close(grad, wanted_grad, rtol=1e-4, atol=1e-5)


def test_formula_by_hand() -> None:
    """(1 - e) nll + e (logsumexp - mean), with two pieces and one token."""
    hidden, weight = torch.tensor([[1.0]]), torch.tensor([[2.0], [0.0]])
    value, nll = label_smoothed_cross_entropy(hidden, weight, torch.tensor([1]), 0.1)
    log_total = torch.tensor([2.0, 0.0], dtype=torch.float64).logsumexp(0).item()
    assert nll.item() == pytest.approx(log_total - 0)
    assert value.item() == pytest.approx(0.9 * log_total + 0.1 * (log_total - 1))


def test_the_plain_likelihood_cannot_be_differentiated() -> None:
    value, nll = label_smoothed_cross_entropy(*sample(3, 4, 2, seed=1), 0.1)
    assert value.requires_grad
    assert not nll.requires_grad


def test_large_logits_stay_finite() -> None:
    hidden, weight, target = sample(5, 6, 4, seed=1, scale=1e4)
    value, _ = label_smoothed_cross_entropy(hidden, weight, target, 0.1)
    value.backward()
    torch.testing.assert_close(value, reference(hidden, weight, target, 0.1), rtol=1e-5, atol=0)
    assert hidden.grad is not None
    assert hidden.grad.isfinite().all()


def test_it_can_be_differentiated_once() -> None:
    """A second time, the gradient of the gradient, or of another loss, is an error."""
    hidden, weight, target = sample(5, 6, 4, seed=1)
    value, _ = label_smoothed_cross_entropy(hidden, weight, target, 0.1)
    [grad] = torch.autograd.grad(value.square(), [hidden], create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        grad.sum().backward()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(value, [hidden])


class _Products(TorchDispatchMode):
    """Counts matrix products."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += "mm" in func.__name__
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("wanted", [(True, True), (True, False), (False, True), (False, False)])
def test_only_gradients_that_are_wanted_are_made(
    wanted: tuple[bool, bool], dtype: torch.dtype
) -> None:
    hidden, weight, target = sample(5, 6, 4, seed=1)
    inputs = [
        tensor.detach().to(dtype).requires_grad_(on)
        for tensor, on in zip((hidden, weight), wanted, strict=True)
    ]
    with _Products() as products:
        value, _ = label_smoothed_cross_entropy(*inputs, target, 0.1)
    assert products.count == 1 + sum(wanted)
    assert value.requires_grad == any(wanted)
    if any(wanted):
        value.backward()
    reference(hidden, weight, target, 0.1).backward()
    for tensor, on, exact in zip(inputs, wanted, (hidden, weight), strict=True):
        assert (tensor.grad is not None) == on
        if tensor.grad is not None:
            error = (tensor.grad - exact.grad).norm() / exact.grad.norm()
            assert error < (1e-5 if dtype == torch.float32 else 0.02)


def test_without_gradient_none_is_made() -> None:
    hidden, weight, target = sample(5, 6, 4, seed=1)
    with torch.no_grad(), _Products() as products:
        value, _ = label_smoothed_cross_entropy(hidden, weight, target, 0.1)
    assert products.count == 1
    assert value.item() == pytest.approx(reference(hidden, weight, target, 0.1).item(), rel=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_half_precision_sums_in_fp32(smoothing: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against fp64, for numbers whose products are exact in bf16, in chunks of two tokens."""
    monkeypatch.setattr(loss, "chunk_rows", lambda *_: 2)
    generator = torch.Generator().manual_seed(1)
    # All of one sign and one target, so that the gradient's sums grow: 600 steps of about 1.
    hidden = torch.randint(1, 3, (600, 4), generator=generator)
    weight = torch.randint(-3, 4, (7, 4), generator=generator) / 4
    target = torch.zeros(600, dtype=torch.int64)
    half = [tensor.bfloat16().requires_grad_() for tensor in (hidden, weight)]
    exact = [tensor.double().requires_grad_() for tensor in (hidden, weight)]
    assert torch.equal((half[0] @ half[1].t()).double(), exact[0] @ exact[1].t())
    value, nll = label_smoothed_cross_entropy(*half, target, smoothing)
    assert value.dtype == nll.dtype == torch.float32
    wanted = reference(*exact, target, smoothing)
    assert value.item() == pytest.approx(wanted.item(), rel=1e-6)
    assert nll.item() == pytest.approx(reference(*exact, target, 0.0).item(), rel=1e-6)
    value.backward()
    wanted.backward()
    for tensor, other in zip(half, exact, strict=True):
        assert tensor.grad is not None
        assert tensor.grad.dtype == torch.bfloat16
        assert other.grad is not None
        # Two roundings in bf16, of a product and of its division; each is 2^-9 at most.
        scale = other.grad.abs().amax().item()
        torch.testing.assert_close(tensor.grad.double(), other.grad, rtol=2**-7, atol=2**-8 * scale)


def test_a_weight_used_twice_gets_both_gradients() -> None:
    """Embedding and output projection are one matrix."""
    hidden, weight, target = sample(4, 5, 3, seed=2)
    value, _ = label_smoothed_cross_entropy(hidden + weight[target], weight, target, 0.1)
    wanted = reference(hidden + weight[target], weight, target, 0.1)
    [grad] = torch.autograd.grad(value, [weight])
    [wanted_grad] = torch.autograd.grad(wanted, [weight])
    torch.testing.assert_close(grad, wanted_grad, rtol=1e-4, atol=1e-5)


def test_memory_is_bounded_by_the_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits exist for so many tokens at most."""
    monkeypatch.setattr(loss, "chunk_rows", lambda *_: 4)
    sizes: list[int] = []
    mm = torch.mm

    def spy(left: Tensor, right: Tensor, out: Tensor) -> Tensor:
        sizes.append(out.numel())
        return mm(left, right, out=out)

    monkeypatch.setattr(torch, "mm", spy)
    hidden, weight, target = sample(10, 6, 4, seed=1)
    with torch.no_grad():
        label_smoothed_cross_entropy(hidden, weight, target, 0.1)
    assert sizes == [24, 24, 12]


@pytest.mark.parametrize(("device", "most_bytes"), [("cpu", 64e6), ("cuda", 300e6)])
def test_chunks_are_small_in_bytes_but_not_in_tokens(device: str, most_bytes: float) -> None:
    for num_pieces in (8_000, 32_000, 64_000, 128_000, 256_000):
        rows = chunk_rows(num_pieces, torch.device(device))
        assert rows >= 256
        assert rows == 256 or most_bytes / 4 < 4 * rows * num_pieces <= most_bytes
