"""A site's file: what it may say, and what its mistakes are called."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from cluster.config import ClusterConfig
from hyperadapter.core.errors import ConfigError
from hyperadapter.core.schema import load_config, parse_config

LEAST = {"partition": "main", "time_limit": "1:00:00"}


def site(**values: Any) -> ClusterConfig:
    return parse_config(ClusterConfig, LEAST | values, "site.yaml")


@pytest.mark.parametrize("name", ["example", "local"])
def test_the_files_that_come_with_it_are_valid(name: str, repository: Path) -> None:
    assert load_config(ClusterConfig, repository / "configs" / "clusters" / f"{name}.yaml").nodes


@pytest.mark.parametrize(
    ("text", "seconds"), [("0:10:00", 600), ("23:59:59", 86399), ("2-01:00:05", 176405)]
)
def test_time_limit(text: str, seconds: int) -> None:
    assert site(time_limit=text).time_limit_s == seconds


@pytest.mark.parametrize(
    ("values", "processes"),
    [({}, 1), ({"gpus_per_node": 8}, 8), ({"gpus_per_node": 8, "tasks_per_node": 2}, 2)],
)
def test_one_process_for_each_gpu(values: dict[str, int], processes: int) -> None:
    assert site(**values).processes_per_node == processes


def test_runs_that_share_a_node_share_its_processes() -> None:
    assert site(gpus_per_node=8).processes_per_run(3) == 24
    assert site(gpus_per_node=8).processes_per_run(1, pack=4) == 2
    assert site(gpus_per_node=8, tasks_per_node=4).processes_per_run(1, pack=4) == 1
    assert site(tasks_per_node=6).processes_per_run(1, pack=3) == 2
    with pytest.raises(ConfigError, match=r"3 runs cannot share gpus_per_node 8 evenly; pack 2 or"):
        site(gpus_per_node=8).processes_per_run(1, pack=3)
    few = "4 runs cannot share processes of a node (tasks_per_node) 2 evenly; pack 2"
    with pytest.raises(ConfigError, match=re.escape(few)):
        site(gpus_per_node=8, tasks_per_node=2).processes_per_run(1, pack=4)
    with pytest.raises(ConfigError, match=r"\(tasks_per_node\) 1 evenly; pack none"):
        site().processes_per_run(1, pack=2)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"partition": "a b"}, "partition: must be one word"),
        ({"partition": ""}, "partition: "),
        ({"account": "x\n#SBATCH --hold"}, "account: must be one word"),
        ({"memory": "$(touch x)"}, "memory: must be one word"),
        ({"time_limit": "60"}, "time_limit: must be [days-]hours:minutes:seconds"),
        ({"time_limit": "0:05:00"}, "more than half of time_limit 0:05:00"),
        ({"options": ["--constraint=a b"]}, "must have the form --name or --name=value"),
        ({"options": ["--output=x"]}, "'--output=x' would replace what the script sets itself"),
        ({"environment": {"A B": "1"}}, "'A B' cannot be the name of a variable"),
        ({"environment": {"A": "a\0b"}}, "A: a value cannot hold a zero byte"),
        ({"modules": ["a\nb"]}, "'a\\nb' is empty or has control characters"),
        ({"partitoin": "x"}, "partitoin: unknown key (did you mean 'partition'?)"),
    ],
)
def test_mistakes(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as error:
        site(**values)
    assert said in str(error.value)
