"""The folder of a planned study, on data that nobody has made."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hyperadapter.config import RunConfig
from hyperadapter.core.files import write_json, write_text
from hyperadapter.core.schema import load_config, to_yaml
from hyperadapter.study.config import ReportConfig
from hyperadapter.study.plan import PLAN_FILE, Plan, Point

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "runs" / "quickstart.yaml"


def write_study(folder: Path, names: Sequence[str]) -> None:
    """Writes a study that is called `widths`, whose points have these names and are evaluated."""
    points = []
    for name in names:
        sets = [
            f"name={name}",
            f"run_dir={folder / 'runs' / name}",
            f"data.folder={folder / 'data'}",
            "tracking.enabled=false",
        ]
        config = load_config(RunConfig, CONFIG, sets)
        write_text(folder / "points" / f"{name}.yaml", to_yaml(config))
        points.append(
            Point(
                name=name, axes={"seed": 1}, fingerprint=name, parameters=1, adapter_parameters=1,
                steps=1, tokens=1, flops=1.0, bytes_per_rank=1, disk_bytes=1, gpu_hours=None,
            )
        )  # fmt: skip
    plan = Plan(
        study="widths", description="", key="k", experiment="e", uri="", tracked=False,
        evaluate=True, report=ReportConfig(), points=tuple(points),
    )  # fmt: skip
    write_json(folder / PLAN_FILE, plan.model_dump(mode="json"))
    (folder / "study.yaml").touch()
