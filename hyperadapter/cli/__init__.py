"""The command `hyperadapter <noun> <verb>`: parses, calls, prints.

stdout is results, stderr is log and progress. Exit codes: 0 done, 1 failed, 2 usage, 3 invalid
configuration, 75 interrupted and resumable. Heavy imports stand inside the commands, so that
`--help` answers at once.
"""

from __future__ import annotations

import os
import sys

import click

# Importing them adds their commands to the root.
from hyperadapter.cli import (  # noqa: F401
    analyse,
    config,
    data,
    evaluation,
    export,
    extend,
    jobs,
    model,
    runs,
    scaling,
    study,
    study_report,
    study_runs,
    study_submit,
    track,
    translate,
)
from hyperadapter.cli.base import cli
from hyperadapter.core.errors import ConfigError, HyperAdapterError

__all__ = ["cli", "main"]


def main() -> None:
    """Runs the command and turns errors into messages and exit codes."""
    try:
        status = cli.main(standalone_mode=False)
    except click.exceptions.Abort:
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except HyperAdapterError as error:
        kind = "configuration error" if isinstance(error, ConfigError) else "error"
        click.echo(f"{kind}: {error}", err=True)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        # Who read our output has gone, as `head` does; there is nobody to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        click.echo(
            f"error: {place}{error.strerror or error}; check the path and its permissions "
            "(data.folder and run_dir are where files are written)",
            err=True,
        )
        sys.exit(1)
    sys.exit(status if isinstance(status, int) else 0)
