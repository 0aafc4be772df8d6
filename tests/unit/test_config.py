"""What a run's configuration refuses, and with which words."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from hyperadapter.config import RunConfig, TrainingConfig, check_world_size
from hyperadapter.core.errors import ConfigError
from hyperadapter.core.schema import fingerprint, load_config, parse_config, to_yaml

LEAST: dict[str, Any] = {
    "name": "least",
    "run_dir": "runs/least",
    "data": {
        "folder": "data/least",
        "languages": ["en", "nb"],
        "sources": [
            {"format": "tsv", "name": "mine", "languages": ["en", "nb"], "path": "bitext.tsv"}
        ],
        "tokenizer": {"vocab_size": 100},
    },
    "model": {
        "d_model": 32,
        "ffn_dim": 64,
        "num_heads": 4,
        "num_encoder_layers": 2,
        "num_decoder_layers": 1,
        "adapter": {"kind": "none"},
    },
    "training": {
        "micro_batch_tokens": 300,
        "global_batch_tokens": 1800,
        "max_steps": 10,
        "learning_rate": 0.001,
        "schedule": {"kind": "inverse_sqrt", "warmup_steps": 4},
        "checkpoint": {"every_steps": 5},
        "validation": {"every_steps": 5},
    },
}


def parse(**changes: Any) -> RunConfig:
    """Parses the least configuration with `a__b=value` laid over it."""
    tree = copy.deepcopy(LEAST)
    for key, value in changes.items():
        node = tree
        *groups, last = key.split("__")
        for group in groups:
            node = node.setdefault(group, {})
        node[last] = value
    return parse_config(RunConfig, tree, "test")


def test_the_least_that_must_be_said_is_enough() -> None:
    config = parse()
    assert config.training.micro_batches_per_step == 6
    assert config.model.num_layers == 3
    assert [str(d) for d in config.data.resolved_directions()] == ["en-nb", "nb-en"]


@pytest.mark.parametrize("key", ["name", "run_dir", "data", "model", "training"])
def test_no_default_hides_a_required_choice(key: str) -> None:
    tree = {k: v for k, v in LEAST.items() if k != key}
    with pytest.raises(ConfigError, match=f"{key}: required, but not given"):
        parse_config(RunConfig, tree, "test")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": ""}, "name: String should have at least 1 character"),
        ({"model__num_heads": 5}, "d_model 32 must be even and a multiple of num_heads 5"),
        ({"model__d_model": 3, "model__num_heads": 3}, "d_model 3 must be even"),
        ({"model__dropout": 1.0}, r"model\.dropout: .* less than 1 \(got 1\.0\)"),
        (
            {"model__adapter__kind": "hyper"},
            r"model\.adapter: kind: hyper needs the group hyper_network \(at least its hyper_dim\)",
        ),
        (
            {"model__adapter__kind": "hyperr"},
            r"model\.adapter\.kind: .*'none', 'language', 'direction', 'family' or 'hyper' "
            r"\(got 'hyperr'\)",
        ),
        (
            {"model__adapter__hyper_network": {"hyper_dim": 8, "encoder_inputs": ["src", "src"]}},
            "encoder_inputs: an input is given twice: src, src",
        ),
        (
            {"model__adapter__hyper_network": {"hyper_dim": 8, "decoder_inputs": []}},
            "decoder_inputs: .* at least 1 item",
        ),
        (
            {"training__global_batch_tokens": 1000},
            "global_batch_tokens 1000 must be a multiple of micro_batch_tokens 300",
        ),
        (
            {"training__num_processes": 4},
            r"4 processes cannot share the 6 micro-batches of a step \(global_batch_tokens 1800 / "
            r"micro_batch_tokens 300\); use 1 or 2 or 3 or 6 processes",
        ),
        (
            {"training__precision": "bf16", "training__zero_stage": 0},
            "bf16 with zero_stage 0 trains wrongly: DeepSpeed runs AdamW once on zero gradients",
        ),
        (
            {"training__schedule": {"kind": "wsd", "warmup_steps": 6, "decay_steps": 5}},
            r"warmup_steps 6 \+ decay_steps 5 are more than max_steps 10",
        ),
        (
            {"training__schedule": {"kind": "cosine", "warmup_steps": 0, "decay_steps": 5}},
            "decay_steps 5 is for kind: wsd and would be ignored by kind: cosine; set it to 0",
        ),
        (
            {"training__schedule__final_fraction": 0.1},
            r"final_fraction 0\.1 would be ignored by kind: inverse_sqrt; set it to 0",
        ),
        ({"training__adam_betas": [0.9, 1.0]}, r"adam_betas\.1: .*less than 1 \(got 1\.0\)"),
        ({"training__adam_betas": [0.9]}, r"adam_betas\.1: required, but not given"),
        ({"training__learning_rate": 0.0}, r"learning_rate: .*greater than 0 \(got 0\.0\)"),
        ({"training__zero_stage": 4}, r"zero_stage: .*0, 1, 2 or 3 \(got 4\)"),
        (
            {"training__micro_batch_tokens": 200, "training__global_batch_tokens": 200},
            "cannot hold",
        ),
        (
            {"data__shards": {"max_sentence_tokens": 300}},
            r"micro_batch_tokens 300 cannot hold the longest sentence: "
            r"data\.shards\.max_sentence_tokens 300 \+ 1",
        ),
        ({"tracking__experiment": ""}, "experiment: String should have at least 1 character"),
        ({"training__sead": 1}, r"training\.sead: unknown key \(did you mean 'seed'\?\)"),
    ],
)
def test_mistakes_are_told_before_anything_runs(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(**changes)


@given(st.integers(1, 60), st.integers(1, 70))
def test_processes_share_a_step_equally_or_not_at_all(micro_batches: int, processes: int) -> None:
    training: TrainingConfig = parse(training__global_batch_tokens=300 * micro_batches).training
    assert training.micro_batches_per_step == micro_batches
    if micro_batches % processes == 0:
        check_world_size(training, processes)
        return
    with pytest.raises(ValueError, match="cannot share") as caught:
        check_world_size(training, processes)
    named = str(caught.value).partition("; use ")[2].partition(" processes")[0]
    for number in map(int, named.split(" or ")):
        check_world_size(training, number)


def test_a_hyper_network_may_wait_for_its_kind() -> None:
    """So that `--set model.adapter.kind=language` makes a baseline of a hyper-adapter recipe."""
    config = parse(
        model__adapter={"kind": "language", "hyper_network": {"hyper_dim": 8}},
    )
    assert config.model.adapter.kind == "language"


NO_TAGS = {"encoder": "source", "decoder": "none"}
THREE: dict[str, Any] = {
    "data__languages": ["en", "de", "nl"],
    "data__sources": [
        {"format": "tsv", "name": code, "languages": ["en", code], "path": "bitext.tsv"}
        for code in ("de", "nl")
    ],
}


def hyper(*inputs: str) -> dict[str, Any]:
    network = {"hyper_dim": 8, "encoder_inputs": ["src", "layer"], "decoder_inputs": list(inputs)}
    return {"kind": "hyper", "hyper_network": network}


@pytest.mark.parametrize(
    "adapter",
    [
        {"kind": "none"},
        {"kind": "family"},
        {"kind": "language", "decoder_layers": []},
        hyper("src", "layer"),
        hyper("tgt") | {"decoder_layers": []},
    ],
)
def test_a_hidden_target_is_refused(adapter: dict[str, Any]) -> None:
    kind = adapter["kind"]
    message = (
        "nothing tells the model whether to translate en into de or nl: data.tags.encoder is "
        f"'source', data.tags.decoder is 'none', and adapters of kind '{kind}' do not tell them "
        r"apart; set data.tags.decoder \(or data.tags.encoder\) to target"
    )
    with pytest.raises(ConfigError, match=message):
        parse(**THREE, data__tags=NO_TAGS, model__adapter=adapter)


@pytest.mark.parametrize(
    "changes",
    [
        {"data__tags": {"encoder": "target", "decoder": "none"}},
        {"data__tags": {"encoder": "none", "decoder": "target"}},
        {"data__tags": NO_TAGS, "model__adapter": {"kind": "language"}},
        {"data__tags": NO_TAGS, "model__adapter": {"kind": "direction"}},
        {"data__tags": NO_TAGS, "model__adapter": hyper("tgt")},
        {"data__tags": NO_TAGS, "data__directions": ["de-en", "nl-en"]},
    ],
)
def test_a_visible_target_is_accepted(changes: dict[str, Any]) -> None:
    parse(**THREE, **changes)


def test_families_tell_targets_apart_when_each_has_its_own() -> None:
    sources = [THREE["data__sources"][0], THREE["data__sources"][1] | {"languages": ["en", "uk"]}]
    parse(
        data__languages=["en", "de", "uk"],
        data__sources=sources,
        data__tags=NO_TAGS,
        model__adapter={"kind": "family"},
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model__adapter": {"kind": "language", "encoder_layers": [0, 0]}},
            r"adapter.encoder_layers \[0, 0\] must be ascending numbers from 0 to",
        ),
        (
            {"model__adapter": {"kind": "language", "decoder_layers": [9]}},
            r"adapter.decoder_layers \[9\] must be ascending",
        ),
        (
            {"model__adapter": {"kind": "language", "encoder_layers": [], "decoder_layers": []}},
            "no layer carries an adapter; for a dense model use adapter.kind none",
        ),
        (
            {"model__adapter": {"kind": "language", "families": {"de": "x"}}},
            "families are for kind: family and would be ignored by language",
        ),
        (
            {"model__adapter": {"kind": "family", "families": {"deu": "x"}}},
            "families: write 'deu' as 'de'",
        ),
        (
            {"model__adapter": {"kind": "direction", "generation": "layer_by_layer"}},
            "layer_by_layer is for kind: hyper; direction adapters are stored",
        ),
        ({"training__frozen": ["encoder", "encoder"]}, "frozen names a part twice"),
        (
            {"evaluation": {"sampling": {}, "coverage_penalty": 0.5}},
            r"coverage_penalty is 0\.5, but with sampling .*; set coverage_penalty to 0",
        ),
        (
            {"training__compile": True, "training__zero_stage": 3},
            "compile with zero_stage 3 fails in DeepSpeed",
        ),
    ],
)
def test_options_of_model_and_training_that_cannot_be(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(**changes)


def test_a_resolved_configuration_is_read_back(tmp_path: Path) -> None:
    config = parse()
    (tmp_path / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    again = load_config(RunConfig, tmp_path / "config.yaml")
    assert again == config
    assert fingerprint(again) == fingerprint(config)


def models_in(model: type[BaseModel]) -> list[type[BaseModel]]:
    fields = [field.annotation for field in model.model_fields.values()]
    inner = [a for a in fields if isinstance(a, type) and issubclass(a, BaseModel)]
    return [model, *(found for cls in inner for found in models_in(cls))]


@pytest.mark.parametrize("model", models_in(RunConfig), ids=lambda model: model.__name__)
def test_every_value_is_described(model: type[BaseModel]) -> None:
    assert model.__doc__
    for name, field in model.model_fields.items():
        group = isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
        assert group or field.description, f"{model.__name__}.{name} has no description"


def test_a_shared_layer_norm_is_for_hyper_adapters() -> None:
    with pytest.raises(ConfigError, match=r"model\.adapter: .*false is for kind: hyper; language"):
        parse(model__adapter={"kind": "language", "generated_layer_norm": False})
