"""Commands about configuration files."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from hyperadapter.cli.base import cli, with_config

if TYPE_CHECKING:
    from hyperadapter.config import RunConfig

__all__ = ["config_group"]


@cli.group("config")
def config_group() -> None:
    """Reads and checks configuration files."""


@config_group.command("show")
@with_config
def config_show(config: RunConfig) -> None:
    """Prints the resolved configuration as YAML, with its fingerprint."""
    from hyperadapter.core.schema import fingerprint, to_yaml

    click.echo(f"# fingerprint {fingerprint(config)}\n{to_yaml(config)}", nl=False)


@config_group.command("check")
@with_config
def config_check(config: RunConfig) -> None:
    """Checks a configuration; exit code 3 and the reasons if it cannot be used."""
    from hyperadapter.core.schema import fingerprint

    click.echo(f"valid; fingerprint {fingerprint(config)}")
