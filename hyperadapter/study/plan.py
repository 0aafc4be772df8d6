"""The frozen list of a study's runs.

FOLDER/
    study.yaml        the study as it was planned last
    plan.json         the list: comes last
    points/NAME.yaml  the resolved configuration of each run
    runs/NAME/        the run folders
    parent/           events of the MLflow run below which they are shown
    report/           what `study report` writes
"""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from hyperadapter.config import RunConfig
from hyperadapter.core.errors import ConfigError
from hyperadapter.core.files import read_json
from hyperadapter.core.schema import StrictModel, load_config, parse_config
from hyperadapter.study.config import ReportConfig, Value

__all__ = ["PLAN_FILE", "Plan", "Point", "load_plan", "point_config"]

PLAN_FILE = "plan.json"


class Point(StrictModel):
    """One run of a study."""

    name: str = Field(description="Of its files and of its MLflow run")
    axes: dict[str, Value] = Field(description="Its value on each axis")
    fingerprint: str = Field(description="Of what is trained")
    parameters: int = Field(description="Of the model")
    adapter_parameters: int = Field(description="Of the adapters, or of what generates them")
    miss: float = Field(
        default=0.0,
        description="Of a matched size: how far it is off, as a share of what was aimed at",
    )
    steps: int = Field(description="Optimizer steps")
    tokens: int = Field(description="Target tokens of all steps, padding included")
    flops: float = Field(description="Operations of training")
    bytes_per_rank: int = Field(description="Memory of the fullest rank")
    disk_bytes: int = Field(description="Of checkpoints, at most")
    gpu_hours: float | None = Field(description="Hours of one GPU, if a type was named")


class Plan(StrictModel):
    """A study's runs, in the order in which they are started."""

    study: str = Field(description="Name of the study")
    description: str = Field(description="What it asks")
    key: str = Field(description="By which its MLflow run is found; drawn at the first plan")
    experiment: str = Field(description="MLflow experiment of all runs")
    uri: str = Field(description="Where MLflow is, as in the runs' configurations")
    tracked: bool = Field(default=True, description="Whether MLflow is told of the runs")
    evaluate: bool = Field(description="Whether runs are scored on the test split")
    report: ReportConfig = Field(description="What the report shows")
    gpu: str = Field(default="", description="The type of GPU that hours are of")
    points: tuple[Point, ...] = Field(description="The runs")


def load_plan(folder: Path) -> Plan:
    """Reads the list of a planned study.

    Raises:
        ConfigError: There is none.
        DataError: It is damaged.
    """
    path = folder / PLAN_FILE
    if not path.exists():
        raise ConfigError(
            f"{folder} holds no planned study; make one with `hyperadapter study plan` and a file "
            "of configs/studies, whose `folder` names it"
        )
    return parse_config(Plan, read_json(path), str(path))


def point_config(folder: Path, point: Point) -> RunConfig:
    """Reads the resolved configuration of a point.

    Raises:
        ConfigError: It is missing or damaged, or its run folder is not in the study folder.
    """
    config = load_config(RunConfig, folder / "points" / f"{point.name}.yaml")
    wanted = folder / "runs" / point.name
    if Path(config.run_dir).resolve() != wanted.resolve():
        raise ConfigError(
            f"the run folder of {point.name} is {config.run_dir}, which from here is not {wanted}; "
            "give the command where the study was planned, or plan it again with this folder"
        )
    return config
