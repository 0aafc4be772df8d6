"""Addresses of MLflow, and where their passwords may and may not be."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperadapter.core.errors import ConfigError
from hyperadapter.tracking import TrackedRun, Tracker, redact, resolve_uri, sync, ui_command
from hyperadapter.tracking.uri import URI_VARIABLE, brief

SERVER = "https://me:secret@tracking.invalid/path"
DATABASE = "postgresql+psycopg2://me:secret@host/db"


def test_uris(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve_uri(Path("runs/a"), "") == f"sqlite:///{tmp_path}/runs/mlflow.db"
    assert resolve_uri(Path("runs/a"), "sqlite:///b.db") == f"sqlite:///{tmp_path}/b.db"
    for uri in ("http://localhost:5000", "postgresql://me@host/db", "databricks"):
        assert resolve_uri(Path("a"), uri) == uri


@pytest.mark.parametrize("uri", ["mlruns", "file:///tmp/mlruns", "ftp://me:secret@host"])
def test_what_mlflow_does_not_know(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"^tracking.uri: .* is not a database or ser") as caught:
        resolve_uri(Path("a"), uri)
    assert "secret" not in str(caught.value)
    monkeypatch.setenv(URI_VARIABLE, uri)
    with pytest.raises(ConfigError, match=r"^MLFLOW_TRACKING_URI: .* is not a database or server"):
        resolve_uri(Path("a"), "")


@pytest.mark.parametrize("uri", [SERVER, DATABASE])
def test_the_environment_has_the_password(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(URI_VARIABLE, uri)
    assert resolve_uri(Path("a"), "") == uri
    assert resolve_uri(Path("a"), redact(uri)) == uri
    assert resolve_uri(Path("a"), "http://other:5000") == "http://other:5000"


@pytest.mark.parametrize(
    "uri",
    [SERVER, "http://token@host", DATABASE, "mysql://host/db?user=me&password=secret"],
)
def test_a_password_in_sight_is_refused(uri: str) -> None:
    with pytest.raises(ConfigError, match="environment variable MLFLOW_TRACKING_URI") as caught:
        resolve_uri(Path("a"), uri)
    assert "was given with a password, which would stand in config.yaml" in str(caught.value)
    assert "secret" not in str(caught.value)
    assert "token" not in str(caught.value)
    assert ("MLFLOW_TRACKING_USERNAME and _PASSWORD" in str(caught.value)) == (uri[:4] == "http")


def test_a_password_is_in_no_file_and_sync_asks_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(URI_VARIABLE, SERVER)
    Tracker(tmp_path, TrackedRun("x", enabled=False, params={"seen": SERVER})).finish()
    for path in tmp_path.iterdir():
        assert "secret" not in path.read_text()
    monkeypatch.delenv(URI_VARIABLE)
    with pytest.raises(ConfigError, match="needs its password, which no file keeps; put the whole"):
        sync(tmp_path)


def test_the_command_to_look_at_a_store() -> None:
    command = ui_command("sqlite:////runs of mine/mlflow.db")
    assert command.endswith(
        "mlflow server --backend-store-uri 'sqlite:////runs of mine/mlflow.db' --port 5000"
    )
    assert ui_command("https://me:secret@host:5000") == "open https://***@host:5000 in a browser"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "see https://me:p@host/x and sqlite:////a@b/c",
            "see https://***@host/x and sqlite:////a@b/c",
        ),
        ("https://token@host", "https://***@host"),
        ("https://me:p@ss@host", "https://***@host"),
        ('{"a":"http://me:p@h","b":"c@d"}', '{"a":"http://***@h","b":"c@d"}'),
        ("mysql://h/d?password=p&x=1", "mysql://h/d?password=***&x=1"),
        ("mail me@host", "mail me@host"),
        ("http://host/a@b", "http://host/a@b"),
    ],
)
def test_redact(text: str, expected: str) -> None:
    assert redact(text) == expected
    assert redact(redact(text)) == redact(text)


@given(st.from_regex(r"[a-z0-9:@.%]{1,20}", fullmatch=True))
def test_no_part_of_a_user_is_left(user: str) -> None:
    assert redact(f"https://{user}@host/x") == "https://***@host/x"


def test_an_error_in_brief() -> None:
    error = ValueError("https://me:secret@host " + "x" * 400 + "\nsecond line")
    assert brief(error) == "ValueError: https://***@host " + "x" * (300 - len("https://***@host "))
    assert brief(ValueError()) == "ValueError: "
