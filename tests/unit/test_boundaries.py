"""The house rules that a tool can check: they hold, and a breach is reported by name."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from configparser import ConfigParser
from functools import partial
from pathlib import Path

import pytest

from cluster.config import ClusterConfig
from data_pipeline.config import DataConfig
from hyperadapter.config import ModelConfig, RunConfig
from hyperadapter.core.schema import load_config
from hyperadapter.study.config import load_study

_OF_EXTRAS = {"ctranslate2"}
PACKAGES = ("hyperadapter", "data_pipeline", "cluster")
ROOT = Path(__file__).resolve().parents[2]
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
LOADERS: dict[str, Callable[[Path], object]] = {
    "runs": partial(load_config, RunConfig),
    "data": partial(load_config, DataConfig),
    "models": partial(load_config, ModelConfig),
    "clusters": partial(load_config, ClusterConfig),
    "studies": load_study,
}
CONFIGS = [path for folder in LOADERS for path in sorted((ROOT / "configs" / folder).glob("*"))]


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def run_tool(name: str, *arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    tool = Path(sys.executable).with_name(name)
    return subprocess.run(
        [tool, *arguments], cwd=folder, capture_output=True, text=True, check=False, timeout=120
    )


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    return run_tool("lint-imports", "--no-cache", "--no-logo", folder=folder)


def lint_names(folder: Path) -> subprocess.CompletedProcess[str]:
    arguments = (
        "check",
        "--no-cache",
        "--output-format",
        "concise",
        "--select",
        "F822,RUF022,TID251",
    )
    return run_tool("ruff", *arguments, *PACKAGES, folder=folder)


def test_imports_point_down_and_pass_their_doors() -> None:
    report = lint_imports(ROOT)
    assert report.returncode == 0, report.stdout + report.stderr


def test_ruff_finds_no_banned_name_and_every_all_sorted_and_true() -> None:
    report = lint_names(ROOT)
    assert report.returncode == 0, report.stdout + report.stderr


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the packages in which each rule is broken once, by a module of a telling name."""
    folder = tmp_path_factory.mktemp("planted")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("*.pyc"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    for name, text in BREACHES.items():
        path = folder / name
        path.write_text((path.read_text() if path.exists() else "") + "\n" + text + "\n")
    return folder


BREACHES = {
    "hyperadapter/core/with_torch.py": "import torch",
    "hyperadapter/core/upwards.py": "import hyperadapter.config",
    "hyperadapter/model/upwards.py": "import hyperadapter.training.engine",
    "hyperadapter/evaluation/translate.py": "import mlflow as _planted",
    "hyperadapter/model/starter.py": "import subprocess\nimport os\nos.fork()",
    "hyperadapter/model/unsorted.py": '__all__ = ["b", "a"]\na = b = 1',
    "hyperadapter/model/untrue.py": '__all__ = ["nothing"]',
    "hyperadapter/training/second_engine.py": "from deepspeed import initialize",
    "hyperadapter/training/starter.py": "from torch.multiprocessing import spawn",
    "hyperadapter/evaluation/second_score.py": "import sacrebleu.metrics",
    "hyperadapter/tracking_2.py": "def f():\n    import mlflow.tracking",
    "cluster/sideways.py": "import data_pipeline.config",
    "cluster/with_mlflow.py": "import mlflow",
    "cluster/with_torch.py": "from torch import nn",
    "data_pipeline/pieces.py": "import sentencepiece",
    "data_pipeline/tars.py": "import webdataset",
    "data_pipeline/crowd.py": "import multiprocessing",
}


@pytest.fixture(scope="module")
def import_report(planted: Path) -> str:
    report = lint_imports(planted)
    assert report.returncode == 1, report.stdout + report.stderr
    return report.stdout


@pytest.mark.parametrize(
    "breach",
    [
        "hyperadapter.core.with_torch -> torch",
        "hyperadapter.core.upwards -> hyperadapter.config",
        "hyperadapter.model.upwards -> hyperadapter.training.engine",
        "hyperadapter.evaluation.translate -> mlflow",
        "hyperadapter.model.starter -> subprocess",
        "hyperadapter.training.second_engine -> deepspeed",
        "hyperadapter.evaluation.second_score -> sacrebleu",
        "hyperadapter.tracking_2 -> mlflow",
        "cluster.sideways -> data_pipeline.config",
        "cluster.with_mlflow -> mlflow",
        "cluster.with_torch -> torch",
        "data_pipeline.pieces -> sentencepiece",
        "data_pipeline.tars -> webdataset",
        "data_pipeline.crowd -> multiprocessing",
    ],
)
def test_import_linter_bites(import_report: str, breach: str) -> None:
    assert breach in import_report


def test_import_linter_bites_nothing_but_the_planted(import_report: str) -> None:
    reported = {
        line.split(" -> ")[0].lstrip("- ") for line in import_report.splitlines() if " -> " in line
    }
    planted = {name.removesuffix(".py").replace("/", ".") for name in BREACHES}
    assert reported <= planted


@pytest.mark.parametrize(
    ("place", "remedy"),
    [
        (
            "hyperadapter/evaluation/translate.py",
            "Only hyperadapter/tracking/store.py talks to MLflow",
        ),
        ("hyperadapter/model/starter.py", "`os.fork` is banned: Only cluster/ starts processes"),
        ("hyperadapter/model/starter.py", "`subprocess` is banned"),
        ("hyperadapter/training/second_engine.py", "Only hyperadapter/training/engine.py"),
        ("hyperadapter/training/starter.py", "`torch.multiprocessing` is banned"),
        ("hyperadapter/evaluation/second_score.py", "Only hyperadapter/evaluation/score.py"),
        ("hyperadapter/tracking_2.py", "Only hyperadapter/tracking/store.py talks to MLflow"),
        ("data_pipeline/pieces.py", "Only data_pipeline/tokenizer.py talks to SentencePiece"),
        ("data_pipeline/tars.py", "Only data_pipeline/shards/writer.py talks to WebDataset"),
        ("data_pipeline/crowd.py", "`multiprocessing` is banned"),
        ("hyperadapter/model/unsorted.py", "RUF022"),
        ("hyperadapter/model/untrue.py", "Undefined name `nothing` in `__all__`"),
    ],
)
def test_ruff_bites(planted: Path, place: str, remedy: str) -> None:
    report = lint_names(planted).stdout
    assert any(line.startswith(place) and remedy in line for line in report.splitlines()), report


def test_every_module_of_the_package_has_a_layer() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    start = text.index("layers = [")
    layered = set(re.findall(r"hyperadapter\.(\w+)", text[start : text.index("]", start)]))
    found = {path.stem for path in (ROOT / "hyperadapter").iterdir() if is_module(path)}
    missing = sorted(found - layered)
    assert not missing, f"pyproject.toml's import-linter layers lack {missing}"


def is_module(path: Path) -> bool:
    inside = path.is_dir() and any(path.glob("*.py"))
    return inside or (path.suffix == ".py" and path.stem != "__init__")


def test_light_parts_load_nothing_heavy() -> None:
    names = [
        relative(path).removesuffix(".py").replace("/", ".").removesuffix(".__init__")
        for path in MODULES
        if path.is_relative_to(ROOT / "hyperadapter" / "core") or path.parent.name == "cluster"
    ]
    light = ["hyperadapter.cli", "hyperadapter.config", "hyperadapter.tracking", *names]
    script = (
        f"import importlib, sys\nfor name in {light!r}: importlib.import_module(name)\n"
        "print(*sorted({'torch', 'deepspeed', 'mlflow', 'matplotlib'} & set(sys.modules)))"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert loaded.stdout.split() == []


@pytest.mark.parametrize("path", CONFIGS, ids=relative)
def test_configuration_files_are_valid(path: Path) -> None:
    LOADERS[path.parent.name](path)


def test_there_are_configurations() -> None:
    assert {path.parent.name for path in CONFIGS} == set(LOADERS)
    stray = [p for p in (ROOT / "configs").rglob("*.yaml") if p.parent.name not in LOADERS]
    assert not stray, f"say in LOADERS what reads {stray}"


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return {name.partition(".")[0] for name in names}


def test_what_is_imported_is_declared_and_the_other_way_round() -> None:
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    lines = setup["options"]["install_requires"].split("\n")
    declared = {re.split("[<>=]", line)[0] for line in lines if line and line[0] != "#"}
    used = set().union(*map(imported, MODULES)) - {*sys.stdlib_module_names, *PACKAGES}
    used.add("protobuf")  # imported by sentencepiece_model_pb2
    assert {"yaml" if name == "PyYAML" else name for name in declared} == used - _OF_EXTRAS


def test_every_dependency_is_pinned() -> None:
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    lines = setup["options"]["install_requires"] + setup["options.extras_require"]["test"]
    pins = {line.partition("==")[0] for line in (ROOT / "constraints.txt").read_text().split()}
    assert set(re.findall(r"^[\w-]+", lines, re.MULTILINE)) <= pins


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_files_and_functions_are_short(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= 600
    for node in functions(ast.parse(text)):
        length = (node.end_lineno or node.lineno) - node.lineno + 1
        assert length <= 80, f"{relative(path)}:{node.lineno}: {node.name} has {length} lines"


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_every_module_says_what_it_offers(path: Path) -> None:
    assigned = {
        target.id
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.Assign | ast.AnnAssign)
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        if isinstance(target, ast.Name)
    }
    assert "__all__" in assigned or path.name in ("__init__.py", "__main__.py")
