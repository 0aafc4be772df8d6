"""Label-smoothed cross-entropy without a whole matrix of logits.

For N target tokens with hidden states h, embedding matrix W [V, D] and targets y, with z = W h,

    nll      = logsumexp(z) - z_y                                                    nats
    smoothed = (1 - epsilon) nll + epsilon (logsumexp(z) - mean(z))                  nats

(Szegedy et al. 2016, with the uniform distribution over all V pieces). The gradient of the sum is
known in closed form, so the forward pass computes it chunk by chunk and logits exist for
`chunk_rows` target tokens at most.

Shape legend: N target tokens, V pieces, E embedding rows (pieces and tags), D model,
C target tokens of a chunk.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["chunk_rows", "label_smoothed_cross_entropy"]

_CHUNK_LOGITS = {"cpu": 1 << 23, "cuda": 1 << 26}
_LEAST_ROWS = 256


def chunk_rows(num_pieces: int, device: torch.device) -> int:
    """Returns for how many target tokens logits exist at a time.

    A CPU likes chunks near the size of its caches and a GPU large products (34 and 268 MB in fp32),
    but each chunk also reads and writes the embedding's gradient once, so it has 256 tokens at
    least.
    """
    return max(_LEAST_ROWS, _CHUNK_LOGITS[device.type] // num_pieces)


class _LinearCrossEntropy(torch.autograd.Function):
    """Reads and writes each chunk of logits as seldom as it can.

    The mean of a token's logits is h . mean(W). The gradient of the logits is

        exp(z - top) / total - (1 - epsilon) onehot(y) - epsilon / V,

    whose division and last term are applied to its products with W and h instead, which are V / D
    times smaller.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        embedding_ED: Tensor,
        target_N: Tensor,
        smoothing: float,
        num_pieces: int,
        needed: tuple[bool, bool],
    ) -> tuple[Tensor, Tensor]:
        weight_VD = embedding_ED[:num_pieces]
        mean_D = weight_VD.mean(dim=0, dtype=torch.float32) if smoothing else None
        grad_hidden = torch.empty_like(hidden_ND) if needed[0] else None
        grad_embedding = torch.zeros_like(embedding_ED, dtype=torch.float32) if needed[1] else None
        nll = hidden_ND.new_zeros((), dtype=torch.float32)
        loss = nll.clone()
        rows = max(1, min(chunk_rows(num_pieces, hidden_ND.device), hidden_ND.size(0)))
        logits_CV = hidden_ND.new_empty(rows, num_pieces)
        for start in range(0, hidden_ND.size(0), rows):
            chunk = slice(start, start + rows)
            hidden, target = hidden_ND[chunk], target_N[chunk, None]
            logits = torch.mm(hidden, weight_VD.t(), out=logits_CV[: hidden.size(0)]).float()
            picked = logits.gather(1, target)
            top = logits.amax(dim=1, keepdim=True)
            exp = logits.sub_(top).exp_()
            total = exp.sum(dim=1, keepdim=True)
            log_total = total.log().add_(top)
            chunk_nll = (log_total - picked).sum()
            nll += chunk_nll
            loss += (1 - smoothing) * chunk_nll
            if mean_D is not None:
                loss += smoothing * (log_total.sum() - (hidden.float() @ mean_D).sum())
            if grad_hidden is None and grad_embedding is None:
                continue
            # The gradient of the logits times `total`, without the smoothing's last term.
            grad = exp.scatter_add_(1, target, total * (smoothing - 1.0)).to(weight_VD.dtype)
            if grad_hidden is not None:
                torch.mm(grad, weight_VD, out=grad_hidden[chunk]).div_(total)
            if grad_embedding is not None:
                scaled = (hidden / total).to(hidden.dtype)
                if grad.dtype == grad_embedding.dtype:
                    grad_embedding[:num_pieces].addmm_(grad.t(), scaled)
                else:
                    # In bf16: a product in bf16, added up over the chunks in fp32.
                    grad_embedding[:num_pieces] += grad.t() @ scaled
        if mean_D is not None and grad_hidden is not None:
            grad_hidden -= smoothing * mean_D
        if mean_D is not None and grad_embedding is not None:
            grad_embedding[:num_pieces] -= hidden_ND.sum(dim=0, dtype=torch.float32) * (
                smoothing / num_pieces
            )
        ctx.save_for_backward(
            grad_hidden,
            None if grad_embedding is None else grad_embedding.to(embedding_ED.dtype),
        )
        ctx.mark_non_differentiable(nll)
        return loss, nll

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        scale = grads[0]
        # In place: these are large, and a second backward pass is an error of autograd's.
        hidden, embedding = (
            None if grad is None else grad.mul_(scale.to(grad.dtype)) for grad in ctx.saved_tensors
        )
        return hidden, embedding, None, None, None, None


def label_smoothed_cross_entropy(
    hidden_ND: Tensor,
    embedding_ED: Tensor,
    target_N: Tensor,
    smoothing: float,
    num_pieces: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Sums the loss over N target tokens.

    Args:
        hidden_ND: The decoder's output at the tokens to predict [N, D].
        embedding_ED: The shared embedding [E, D], whose first rows are the pieces.
        target_N: Pieces to predict [N].
        smoothing: Epsilon in [0, 1).
        num_pieces: V, the rows that are pieces; by default all.

    Returns:
        The smoothed loss, which can be differentiated once, and the plain negative log-likelihood,
        which cannot; both are sums in nats, fp32 scalars.
    """
    # Inside a Function gradients are always off, so whether they are wanted is asked here.
    on = torch.is_grad_enabled()
    needed = on and hidden_ND.requires_grad, on and embedding_ED.requires_grad
    sums: tuple[Tensor, Tensor] = _LinearCrossEntropy.apply(  # type: ignore[no-untyped-call]
        hidden_ND,
        embedding_ED,
        target_N,
        smoothing,
        embedding_ED.size(0) if num_pieces is None else num_pieces,
        needed,
    )
    return sums
