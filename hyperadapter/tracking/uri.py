"""Where MLflow is: addresses, and keeping their passwords out of sight.

A password comes from the environment and goes nowhere: not into files, parameters, messages or
command lines, which every user of a machine can read.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from pathlib import Path

from hyperadapter.core.errors import ConfigError

__all__ = ["URI_VARIABLE", "brief", "redact", "resolve_uri", "ui_command"]

URI_VARIABLE = "MLFLOW_TRACKING_URI"

_SCHEMES = ("sqlite", "http", "https", "postgresql", "mysql", "mssql", "databricks")
_USER = re.compile(r"(?<=://)[^/\s\"']+(?=@)")
_SECRET_IN_QUERY = re.compile(r"(?<=[?&])((?:password|passwd|token)=)[^&\s\"']+", re.IGNORECASE)


def redact(text: str) -> str:
    """Hides the user and password of every URI in a text."""
    return _SECRET_IN_QUERY.sub(r"\1***", _USER.sub("***", text))


def resolve_uri(run_dir: Path, uri: str) -> str:
    """Returns the tracking URI to use, absolute.

    Args:
        run_dir: The run folder.
        uri: From the configuration or a command line. Empty is what MLFLOW_TRACKING_URI says, and
            without that SQLite beside the run folder. `***` in the place of user and password takes
            them from MLFLOW_TRACKING_URI.

    Raises:
        ConfigError: MLflow has no such kind of store, or the password is missing or in sight.
    """
    given = os.environ.get(URI_VARIABLE, "")
    place = "tracking.uri"
    if not uri or uri == redact(given):
        uri, place = given, URI_VARIABLE
    if not uri:
        return f"sqlite:///{run_dir.resolve().parent / 'mlflow.db'}"
    scheme = uri.partition(":")[0].partition("+")[0]
    if scheme not in _SCHEMES:
        raise ConfigError(
            f"{place}: {redact(uri)!r} is not a database or server ({', '.join(_SCHEMES)}); "
            "leave it empty for a database beside the run folder"
        )
    if place != URI_VARIABLE:
        _check_no_password(uri, scheme)
    if uri.startswith("sqlite:///"):
        return f"sqlite:///{Path(uri.removeprefix('sqlite:///')).resolve()}"
    return uri


def _check_no_password(uri: str, scheme: str) -> None:
    """Refuses a URI whose password is hidden already, or would come into files."""
    remedy = f"put the whole URI into the environment variable {URI_VARIABLE}"
    if scheme.startswith("http"):
        remedy += ", or user and password into MLFLOW_TRACKING_USERNAME and _PASSWORD"
    if "***" in uri:
        raise ConfigError(
            f"tracking.uri: {uri!r} needs its password, which no file keeps; {remedy}"
        )
    user = _USER.search(uri)
    # A database's user alone is no secret; a server's may be a token.
    secret = user is not None and (":" in user.group() or scheme.startswith("http"))
    if secret or _SECRET_IN_QUERY.search(uri):
        raise ConfigError(
            f"tracking.uri: {redact(uri)!r} was given with a password, which would stand in "
            f"config.yaml or be seen in the list of processes; {remedy}, and give no user here"
        )


def ui_command(uri: str) -> str:
    """Returns the command that shows what is stored at a resolved tracking URI."""
    if uri.startswith("http"):
        return f"open {redact(uri)} in a browser"
    installed = Path(sys.executable).with_name("mlflow")
    program = shlex.quote(str(installed)) if installed.exists() else "mlflow"
    return f"{program} server --backend-store-uri {shlex.quote(redact(uri))} --port 5000"


def brief(error: BaseException) -> str:
    """Returns the first line of an error, short and without passwords."""
    lines = redact(str(error)).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:300]}"
