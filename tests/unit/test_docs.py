"""What the documents say must be there: links, commands and keys."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import get_args

import click
import pytest
from pydantic import BaseModel

from hyperadapter.cli import cli
from hyperadapter.config import RunConfig
from hyperadapter.core.schema import load_config

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = ("README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")))

_FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(\s*<?([^)\s>]+)>?[^)]*\)")
_HEADING = re.compile(r"^#+ +(.+)$", re.MULTILINE)
_WEB = re.compile(r"[a-z][a-z0-9+.-]*:")
# Words after the program's name: "hyperadapter data plan --steps", "-m hyperadapter train".
_COMMAND = re.compile(r"(?<![\w/.-])(?:\S*/)?hyperadapter((?: +[a-z][a-z-]*)+)")
_KEY_ROW = re.compile(r"^\| *`([a-z_]+(?:\.[a-z_]+)+)` *\|", re.MULTILINE)
_SET_KEY = re.compile(r"--set +([a-z_]+(?:\.[a-z_]+)+)=")
_YAML = re.compile(r"^```yaml\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"^```.*?^```$|^ {4}.*?$|`[^`]*`", re.MULTILINE | re.DOTALL)
_PLACEHOLDER = re.compile(r"\b(?:[A-Z]+(?:_[A-Z]+)+|TODO|FIXME|TBD|XXX)\b")


def text_of(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


def links(document: str) -> list[str]:
    """Returns the links and images of a document that lead to this repository."""
    found = _LINK.findall(_FENCED.sub("", text_of(document)))
    return [target for target in found if not _WEB.match(target)]


def anchors(path: Path) -> set[str]:
    """Returns the anchors of a document's headings, as GitHub makes them."""
    headings = _HEADING.findall(_FENCED.sub("", path.read_text(encoding="utf-8")))
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {heading.replace(" ", "-") for heading in plain}


def problem_of_command(words: list[str]) -> str:
    """Returns why words after `hyperadapter` are no command, or an empty string."""
    command: click.Command = cli
    for word in words:
        if not isinstance(command, click.Group):
            return ""  # arguments and prose may follow
        if word not in command.commands:
            return f"{command.name} has no {word!r} but {', '.join(sorted(command.commands))}"
        command = command.commands[word]
    return f"{words[-1]!r} needs a verb" if isinstance(command, click.Group) else ""


def has_key(key: str) -> bool:
    """Says whether a dotted key stands in the configuration of a run."""
    model: type[BaseModel] | None = RunConfig
    for name in key.split("."):
        if model is None or name not in model.model_fields:
            return False
        annotation = model.model_fields[name].annotation
        groups = [t for t in (annotation, *get_args(annotation)) if isinstance(t, type)]
        model = next((group for group in groups if issubclass(group, BaseModel)), None)
    return True


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_to_files_and_headings(document: str) -> None:
    missing = []
    for link in links(document):
        name, _, anchor = link.partition("#")
        path = (ROOT / document).parent / name if name else ROOT / document
        if not path.exists() or (anchor and anchor not in anchors(path)):
            missing.append(link)
    assert not missing, f"{document} links to what is not there: {', '.join(missing)}"


def test_the_patterns_find_what_they_look_for() -> None:
    text = text_of("README.md")
    assert "docs/LOG.md" in links("README.md")
    assert {" data clean", " train", " translate"} <= set(_COMMAND.findall(text))
    assert "training.zero_stage" in _KEY_ROW.findall(text)
    assert "model.adapter.kind" in _SET_KEY.findall(text)
    assert "two-commands" in anchors(ROOT / "README.md")
    assert problem_of_command(["data", "stir"]).startswith("data has no 'stir' but clean, ")
    assert problem_of_command(["data"]) == "'data' needs a verb"
    assert has_key("model.adapter.hyper_network.hyper_dim")
    assert not has_key("training.zero_stages")
    assert not has_key("training.zero_stage.x")
    assert _PLACEHOLDER.findall("SCORES_TABLE and a TODO, but no BLEU") == ["SCORES_TABLE", "TODO"]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_nothing_is_left_to_be_filled_in(document: str) -> None:
    assert _PLACEHOLDER.findall(_CODE.sub("", text_of(document))) == []


def test_commands_in_the_readme_exist() -> None:
    found = {tuple(words.split()) for words in _COMMAND.findall(text_of("README.md"))}
    problems = {" ".join(words): problem_of_command(list(words)) for words in found}
    assert not {words: problem for words, problem in problems.items() if problem}


def test_keys_in_the_readme_exist() -> None:
    text = text_of("README.md")
    keys = {*_KEY_ROW.findall(text), *_SET_KEY.findall(text)}
    assert not [key for key in keys if not has_key(key)]


def test_the_example_files_in_the_readme_are_valid(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    data, run = _YAML.findall(text_of("README.md"))
    (tmp_path / "configs" / "data" / "mine.yaml").write_text(data, encoding="utf-8")
    path = tmp_path / "configs" / "runs" / "mine.yaml"
    path.write_text(run, encoding="utf-8")
    config = load_config(RunConfig, path)
    assert config.name == "mine"
    assert [source.format for source in config.data.sources] == ["moses", "tsv"]
