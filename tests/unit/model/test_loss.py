"""The chunked loss against PyTorch's own, in value and gradient."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hyperadapter.model import loss
from hyperadapter.model.loss import label_smoothed_cross_entropy

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
    st.integers(1, 80),
)
def test_equals_cross_entropy_for_any_chunks(
    num: int, vocab: int, width: int, smoothing: float, chunk_logits: int
) -> None:
    hidden, weight, target = sample(num, vocab, width, seed=num * vocab)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loss, "CHUNK_LOGITS", chunk_logits)
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


def test_without_gradient_nothing_is_kept() -> None:
    with torch.no_grad():
        hidden, weight, target = sample(5, 6, 4, seed=1)
        value, _ = label_smoothed_cross_entropy(hidden, weight, target, 0.1)
        assert value.item() == pytest.approx(
            reference(hidden, weight, target, 0.1).item(), rel=1e-5
        )
    assert value.grad_fn is None


def test_half_precision_sums_in_fp32() -> None:
    hidden, weight, target = sample(600, 6, 4, seed=1)
    half = [tensor.detach().bfloat16().requires_grad_() for tensor in (hidden, weight)]
    value, nll = label_smoothed_cross_entropy(half[0], half[1], target, 0.1)
    assert value.dtype == nll.dtype == torch.float32
    value.backward()
    assert [tensor.grad.dtype for tensor in half if tensor.grad is not None] == [torch.bfloat16] * 2
    # bf16 has 8 bits: the products are coarse, but a sum of 600 in bf16 would be off by far more.
    assert value.item() == pytest.approx(reference(hidden, weight, target, 0.1).item(), rel=5e-3)


def test_a_weight_used_twice_gets_both_gradients() -> None:
    """Embedding and output projection are one matrix."""
    hidden, weight, target = sample(4, 5, 3, seed=2)
    value, _ = label_smoothed_cross_entropy(hidden + weight[target], weight, target, 0.1)
    wanted = reference(hidden + weight[target], weight, target, 0.1)
    [grad] = torch.autograd.grad(value, [weight])
    [wanted_grad] = torch.autograd.grad(wanted, [weight])
    torch.testing.assert_close(grad, wanted_grad, rtol=1e-4, atol=1e-5)


def test_memory_is_bounded_by_the_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    """No matrix of logits is larger than CHUNK_LOGITS."""
    monkeypatch.setattr(loss, "CHUNK_LOGITS", 24)
    sizes: list[int] = []
    matmul = Tensor.__matmul__

    def spy(self: Tensor, other: Tensor) -> Tensor:
        out = matmul(self, other)
        sizes.append(out.numel())
        return out

    monkeypatch.setattr(Tensor, "__matmul__", spy)
    label_smoothed_cross_entropy(*sample(10, 6, 4, seed=1), 0.1)
    assert sizes == [24, 24, 12]
