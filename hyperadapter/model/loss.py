"""Label-smoothed cross-entropy without a whole matrix of logits.

For N target tokens with hidden states h, embedding matrix W [V, D] and targets y, with z = W h,

    nll      = logsumexp(z) - z_y                                                    nats
    smoothed = (1 - epsilon) nll + epsilon (logsumexp(z) - mean(z))                  nats

(Szegedy et al. 2016, with the uniform distribution over all V pieces). The gradient of the sum is
known in closed form, so the forward pass computes it chunk by chunk and logits exist for
`CHUNK_LOGITS` numbers at most.

Shape legend: N target tokens, V vocabulary, D model.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["CHUNK_LOGITS", "label_smoothed_cross_entropy"]

CHUNK_LOGITS = 1 << 26
"""Most logits that exist at a time: 268 MB in fp32."""


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        target_N: Tensor,
        smoothing: float,
        need: bool,
    ) -> tuple[Tensor, Tensor]:
        vocab_size = weight_VD.size(0)
        grad_hidden = torch.empty_like(hidden_ND) if need else None
        grad_weight = torch.zeros_like(weight_VD, dtype=torch.float32) if need else None
        nll = hidden_ND.new_zeros((), dtype=torch.float32)
        loss = nll.clone()
        rows = max(1, CHUNK_LOGITS // vocab_size)
        for start in range(0, hidden_ND.size(0), rows):
            chunk = slice(start, start + rows)
            hidden, target = hidden_ND[chunk], target_N[chunk, None]
            logits = (hidden @ weight_VD.t()).float()
            top = logits.amax(dim=1, keepdim=True)
            picked = logits.gather(1, target)
            mean = logits.mean(dim=1, keepdim=True)
            exp = logits.sub_(top).exp_()
            total = exp.sum(dim=1, keepdim=True)
            log_total = total.log() + top
            chunk_nll = (log_total - picked).sum()
            nll += chunk_nll
            loss += (1 - smoothing) * chunk_nll + smoothing * (log_total - mean).sum()
            if grad_hidden is not None and grad_weight is not None:
                grad = exp.div_(total)
                if smoothing:
                    grad.sub_(smoothing / vocab_size)
                grad.scatter_add_(1, target, grad.new_full(target.shape, smoothing - 1.0))
                grad = grad.to(weight_VD.dtype)
                torch.mm(grad, weight_VD, out=grad_hidden[chunk])
                if grad.dtype == grad_weight.dtype:
                    grad_weight.addmm_(grad.t(), hidden)
                else:
                    # In bf16: a product in bf16, added up over the chunks in fp32.
                    grad_weight += grad.t() @ hidden
        if grad_hidden is not None and grad_weight is not None:
            ctx.save_for_backward(grad_hidden, grad_weight.to(weight_VD.dtype))
        ctx.mark_non_differentiable(nll)
        return loss, nll

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        grad_hidden, grad_weight = ctx.saved_tensors
        scale = grads[0]
        return grad_hidden * scale, grad_weight * scale, None, None, None


def label_smoothed_cross_entropy(
    hidden_ND: Tensor, weight_VD: Tensor, target_N: Tensor, smoothing: float
) -> tuple[Tensor, Tensor]:
    """Sums the loss over N target tokens.

    Args:
        hidden_ND: The decoder's output at the tokens to predict [N, D].
        weight_VD: Output embedding [V, D].
        target_N: Pieces to predict [N].
        smoothing: Epsilon in [0, 1).

    Returns:
        The smoothed loss, which can be differentiated, and the plain negative log-likelihood, which
        cannot; both are sums in nats, fp32 scalars.
    """
    # Inside a Function gradients are always off, so whether they are wanted is asked here.
    need = torch.is_grad_enabled() and (hidden_ND.requires_grad or weight_VD.requires_grad)
    sums: tuple[Tensor, Tensor] = _LinearCrossEntropy.apply(  # type: ignore[no-untyped-call]
        hidden_ND, weight_VD, target_N, smoothing, need
    )
    return sums
