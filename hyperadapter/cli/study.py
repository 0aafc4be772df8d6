"""Commands that plan studies."""

from __future__ import annotations

from hyperadapter.cli.base import cli

__all__ = ["study_group"]


@cli.group("study")
def study_group() -> None:
    """Plans, runs and reports many runs that differ in a few settings."""
