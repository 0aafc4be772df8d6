from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from data_pipeline.tokenizer import Tokenizer
from hyperadapter import forecast as module
from hyperadapter.cli import cli
from hyperadapter.config import RunConfig
from hyperadapter.core.errors import ConfigError
from hyperadapter.core.schema import load_config
from hyperadapter.forecast import forecast_run, forecast_tables
from hyperadapter.gpus import GPUS, changes_that_fit, usable_bytes

ROOT = Path(__file__).resolve().parents[2]
STUDY = ROOT / "configs" / "runs" / "study.yaml"
LARGE = ("model.d_model=2048", "model.ffn_dim=8192", "model.adapter.bottleneck_dim=512")


@pytest.fixture
def study(tmp_path: Path) -> Any:
    """Loads the study's run with changes; its data do not exist."""

    def load(*changes: str) -> RunConfig:
        places = f"data.folder={tmp_path / 'data'}", f"run_dir={tmp_path / 'run'}"
        return load_config(RunConfig, STUDY, [*places, *changes])

    return load


def test_it_adds_up_without_data_and_writes_nothing(study: Any, tmp_path: Path) -> None:
    report = forecast_run(study(), world_size=2)
    for parts in (report["bytes_per_rank"], report["host_bytes_per_rank"]):
        *some, total = parts.values()
        assert total == sum(some)
    assert report["vocab_size"] == study().data.tokenizer.vocab_size
    assert report["vocab_size_from"] == "data.tokenizer.vocab_size"
    assert report["run"]["flops"] == 60_000 * report["step"]["flops"]
    assert report["run"]["tgt_tokens"] == 60_000 * 32_768
    assert report["step"]["micro_batches_per_rank"] == 1
    assert report["disk"]["checkpoints"] == 4
    assert report["disk"]["checkpoint_bytes"] == 12 * report["num_parameters"]
    assert list(tmp_path.iterdir()) == []


def test_the_tokenizer_knows_better(
    study: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Small:
        vocab_size = 777

    folder = tmp_path / "data" / "tokenizer"
    folder.mkdir(parents=True)
    (folder / "manifest.json").touch()
    assert forecast_run(study())["vocab_size_from"] == "data.tokenizer.vocab_size"
    (folder / "spm.model").touch()
    monkeypatch.setattr(Tokenizer, "load", lambda path: Small() if path == folder else None)
    report = forecast_run(study())
    assert report["vocab_size"] == 777
    assert report["vocab_size_from"] == str(folder)


def test_hours(study: Any) -> None:
    report = forecast_run(study(), world_size=2, gpu="h100", tokens_per_s=1_000)
    per_hour = 2 * 989e12 * 0.4 * 3600
    assert report["gpu"]["hours"] == pytest.approx(report["run"]["flops"] / per_hour)
    assert report["measured"]["hours"] == pytest.approx(60_000 * 32_768 / 1_000 / 3600)
    half = forecast_run(study(), world_size=2, gpu="H100", utilisation=0.2)
    assert half["gpu"]["hours"] == pytest.approx(2 * report["gpu"]["hours"])
    fp32 = forecast_run(study("training.precision=fp32"), world_size=2, gpu="H100")
    assert fp32["gpu"]["hours"] == pytest.approx(report["gpu"]["hours"] * 989 / 67)


def test_computing_layers_twice_takes_longer_and_less_memory(study: Any) -> None:
    once, twice = (
        forecast_run(study(f"training.activation_checkpointing={on}")) for on in ("false", "true")
    )
    assert 1 < twice["run"]["flops"] / once["run"]["flops"] < 4 / 3
    assert twice["bytes_per_rank"]["activations"] < once["bytes_per_rank"]["activations"] / 2


def test_one_direction_at_a_time_generates_less(study: Any) -> None:
    mixed, alone = (
        forecast_run(study(f"data.stream.policy={policy}"))
        for policy in ("mixed", "one_direction_per_micro_batch")
    )
    assert mixed["assuming"]["directions_per_micro_batch"] > 100
    assert alone["assuming"]["directions_per_micro_batch"] == 1
    names = "generated_adapters"
    assert alone["bytes_per_rank"][names] < mixed["bytes_per_rank"][names] / 100


def test_a_run_that_fits_needs_no_change(study: Any) -> None:
    report = forecast_run(study(), gpu="B200")
    assert report["gpu"]["fits"]
    assert report["gpu"]["changes"] == []
    title, _, rows = forecast_tables(report)[-1]
    assert title == "The run fits on B200"
    assert [name for name, _ in rows] == ["as it is", "can be used"]


@pytest.mark.parametrize("gpu", ["A100-40GB", "L4"])
def test_every_proposed_change_makes_the_run_fit(study: Any, gpu: str) -> None:
    report = forecast_run(study(*LARGE), world_size=2, gpu=gpu)
    assert not report["gpu"]["fits"]
    assert report["gpu"]["changes"]
    shown = [name for name, _ in forecast_tables(report)[-1][2]]
    for change in report["gpu"]["changes"]:
        changed = forecast_run(study(*LARGE, *change["set"]), world_size=2, gpu=gpu)
        assert changed["gpu"]["fits"]
        assert changed["bytes_per_rank"]["total"] == change["total"]
        assert f"--set {' --set '.join(change['set'])}" in shown


def test_changes_are_named_alone_or_together(study: Any) -> None:
    config = study("training.zero_stage=0", "training.precision=fp32")

    def bytes_of(changed: RunConfig) -> int:
        training = changed.training
        saved = training.zero_stage * 10 + training.activation_checkpointing * 5
        return 100 - saved - (training.micro_batch_tokens < 16_384)

    assert [c["set"] for c in changes_that_fit(config, 2, bytes_of, 80)] == [
        ["training.zero_stage=2"]
    ]
    assert changes_that_fit(config, 2, bytes_of, 66) == [
        {
            "set": [
                "training.zero_stage=3",
                "model.adapter.generation=layer_by_layer",
                "training.activation_checkpointing=true",
            ],
            "total": 65,
        }
    ]
    assert changes_that_fit(config, 2, bytes_of, 10) == []
    # Nothing is shared out by one rank, and nothing is offloaded without ZeRO.
    assert [c["set"] for c in changes_that_fit(config, 1, bytes_of, 99)] == [
        ["training.activation_checkpointing=true"],
        ["training.offload_optimizer=true", "training.zero_stage=1"],
        ["training.micro_batch_tokens=8192"],
    ]


def test_nothing_helps(study: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "usable_bytes", lambda _: 1_000)
    report = forecast_run(study(), gpu="L4")
    assert report["gpu"]["changes"] == []
    assert "no change of sharding, offloading" in forecast_tables(report)[-1][0]


def test_usable_memory_is_less_than_all() -> None:
    assert usable_bytes(GPUS["H100"]) == 76_000_000_000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gpu": "H1000"}, r"--gpu H1000: unknown; choose one of B200, H200, H100, H100-PCIE, "),
        ({"gpu": "V100"}, r"--gpu V100: it has no bf16; set training.precision to fp32"),
        ({"world_size": 3}, r"3 processes cannot share the 2 micro-batches of a step"),
        ({"utilisation": 0.3}, r"--utilisation 0.3 is of a GPU's peak; name one with --gpu"),
    ],
)
def test_what_cannot_be_forecast(study: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        forecast_run(study(), **options)


def test_the_command_prints_tables_or_json(tmp_path: Path) -> None:
    command = ["train", "--config", str(STUDY), "--dry-run", "--world", "2", "--gpu", "H200"]
    command += ["--set", f"data.folder={tmp_path}", "--set", f"run_dir={tmp_path / 'run'}"]
    tables = CliRunner().invoke(cli, command, catch_exceptions=False)
    assert tables.exit_code == 0
    assert "Memory of the fullest of 2 ranks, ZeRO stage 1, bf16" in tables.output
    assert "hours on 2 H200, assuming 40% of 989.0 TFLOP/s each" in tables.output
    printed = CliRunner().invoke(cli, [*command, "--json"], catch_exceptions=False)
    report = json.loads(printed.stdout)
    assert report["world_size"] == 2
    assert report["gpu"]["type"] == "H200"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "name"),
    [(["--world", "2"], "--world"), (["--gpu", "H100"], "--gpu"), (["--json"], "--json")],
)
def test_options_of_the_forecast_do_not_train(options: list[str], name: str) -> None:
    done = CliRunner().invoke(cli, ["train", "--config", str(STUDY), *options])
    assert done.exit_code == 2
    assert f"{name} is for --dry-run" in done.output
