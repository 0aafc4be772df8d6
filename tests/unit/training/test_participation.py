from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from hyperadapter.core.errors import TrainingError
from hyperadapter.model.seq2seq import Seq2Seq, build_model
from hyperadapter.training.optimizer import freeze
from hyperadapter.training.participation import check_participation
from hyperadapter.training.world import World
from tests.distributed.parity_worker import ModulePerDirection
from tests.unit.model.conftest import VOCABULARY, make_config

ALONE = World(0, 1, torch.device("cpu"), None)


def make_model(kind: str, **keys: Any) -> Seq2Seq:
    return build_model(make_config(kind, **keys), VOCABULARY, seed=1)


class Three(World):
    """The middle one of three ranks; the others found nothing, or the same."""

    def __new__(cls, others: str) -> Three:
        self = super().__new__(cls, 1, 3, torch.device("cpu"), None)
        self.others = others
        return self

    def gather(self, value: Any) -> list[Any]:
        return [value if self.others == "the same" else [], value, []]


@pytest.mark.parametrize(
    ("kind", "keys"),
    [
        ("none", {}),
        ("language", {}),
        ("direction", {}),
        ("family", {}),
        ("language", {"encoder_layers": ()}),
        ("hyper", {}),
        ("hyper", {"generation": "layer_by_layer"}),
        ("hyper", {"generated_layer_norm": False}),
        ("hyper", {"hyper": {"tied_language_embeddings": False, "num_blocks": 0}}),
        ("hyper", {"hyper": {"head_rank": 2, "rescale": "mip"}}),
        ("hyper", {"start": "identity"}),
    ],
)
@pytest.mark.parametrize("recompute", [False, True])
def test_our_models_pass(kind: str, keys: dict[str, Any], recompute: bool) -> None:
    model = make_model(kind, **keys)
    model.activation_checkpointing = recompute
    check_participation(model, ALONE)


def test_frozen_parts_need_no_gradient(make_training: Callable[..., Any]) -> None:
    model = make_model("hyper")
    freeze(model, make_training(frozen=["embedding", "encoder", "decoder", "hyper_body"]))
    check_participation(model, ALONE)


def test_it_changes_nothing() -> None:
    model = make_model("hyper", dropout=0.3).train()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    torch.manual_seed(5)
    numbers = torch.get_rng_state()
    check_participation(model, ALONE)
    assert torch.get_rng_state().equal(numbers)
    assert model.training
    for name, parameter in model.named_parameters():
        assert parameter.grad is None
        assert parameter.equal(before[name])
        assert not parameter._post_accumulate_grad_hooks


def test_a_parameter_that_nothing_uses_is_named() -> None:
    model = make_model("none")
    model.decoder.forgotten = nn.Linear(2, 2)
    count = len(list(model.parameters()))
    with pytest.raises(TrainingError) as error:
        check_participation(model, ALONE)
    assert str(error.value) == (
        f"not all of the {count} trained parameters have a gradient in a micro-batch of one "
        "direction: decoder.forgotten.weight, decoder.forgotten.bias on rank 0 have none. ZeRO "
        "would mix up the gradients of the ranks without an error. Stack what belongs to languages "
        "or directions in one parameter and select its rows, as AdapterStack does; remove, or name "
        "in training.frozen, what no micro-batch uses"
    )
    model.decoder.forgotten.requires_grad_(False)
    check_participation(model, ALONE)


@pytest.mark.parametrize(
    ("others", "ranks"), [("nothing", "on rank 1 have"), ("the same", "on ranks 0, 1 have")]
)
def test_the_message_names_the_ranks(others: str, ranks: str) -> None:
    model = make_model("none")
    model.forgotten = nn.ParameterList(torch.zeros(1) for _ in range(5))
    with pytest.raises(TrainingError) as error:
        check_participation(model, Three(others))
    assert f"forgotten.0, forgotten.1, forgotten.2 and 2 more {ranks}" in str(error.value)


def test_a_module_per_direction_is_refused() -> None:
    model = make_model("direction")
    model.adapters = ModulePerDirection(model)
    with pytest.raises(TrainingError) as error:
        check_participation(model, ALONE)
    # Rank 0 has direction 0.
    assert "adapters.stack.1.down_KLRD" in str(error.value)
    assert "adapters.stack.0" not in str(error.value)
    with pytest.raises(TrainingError, match=r"adapters\.stack\.0\.down_KLRD"):
        check_participation(model, Three("nothing"))


def test_what_only_targets_use_is_found() -> None:
    """Damaged data leave micro-batches without any target."""
    model = make_model("none")
    model.bias = nn.Parameter(torch.zeros(()))
    forward = model.forward

    def biased(batch: Any) -> Any:
        sums = forward(batch)
        return sums._replace(loss=sums.loss + model.bias) if len(batch.target_K) else sums

    model.forward = biased  # type: ignore[method-assign]
    with pytest.raises(TrainingError, match=r"direction: bias on rank 0 have none"):
        check_participation(model, ALONE)


def test_a_model_without_any_gradient_is_refused() -> None:
    model = make_model("none").requires_grad_(False)
    model.forgotten = nn.Parameter(torch.zeros(1))
    with pytest.raises(TrainingError, match="not all of the 1 trained parameters"):
        check_participation(model, ALONE)
