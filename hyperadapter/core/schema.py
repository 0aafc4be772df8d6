"""Configuration files: strict frozen pydantic trees from YAML with one parent and overrides.

YAML is read as version 1.2, where PyYAML's safe loader follows 1.1: only `true` and `false` are
booleans (so that the language code `no` stays text), `3e-4` is a number, and `010`, `1:30` and
dates are text.
"""

from __future__ import annotations

import hashlib
import json
import re
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from hyperadapter.core.errors import ConfigError, nearest

__all__ = [
    "StrictModel",
    "apply_overrides",
    "fingerprint",
    "flat_params",
    "load_config",
    "merge_trees",
    "parse_config",
    "read_config_tree",
    "read_yaml",
    "to_yaml",
]


class StrictModel(BaseModel):
    """A frozen part of a configuration in which an unknown key is an error."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, validate_default=True, allow_inf_nan=False
    )


ConfigT = TypeVar("ConfigT", bound=StrictModel)


_REPLACED_TAGS = tuple(
    f"tag:yaml.org,2002:{kind}" for kind in ("bool", "float", "int", "timestamp")
)


class _Loader(yaml.SafeLoader):
    """Safe loader with YAML 1.2's scalars, which refuses a key given twice."""

    yaml_implicit_resolvers = {  # noqa: RUF012 (declared so by PyYAML)
        first: [(tag, pattern) for tag, pattern in resolvers if tag not in _REPLACED_TAGS]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            place = f"{key_node.start_mark.name}:{key_node.start_mark.line + 1}"
            if not isinstance(key_node, yaml.ScalarNode):
                raise ConfigError(f"{place}: a key must be a word, not a list or a group of keys")
            if key_node.value in seen:
                raise ConfigError(f"{place}: the key {key_node.value!r} is given twice; keep one")
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)


_BOOL = re.compile(r"^(?:true|false)$")
_INT = re.compile(r"^[-+]?(?:0|[1-9][0-9_]*)$")
_FLOAT = re.compile(
    r"^[-+]?(?:[0-9]+\.[0-9]*(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+"
    r"|\.[0-9]+(?:[eE][-+]?[0-9]+)?|\.inf|\.nan)$"
)
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", _BOOL, list("tf"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", _INT, list("-+0123456789"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))


def _parse_yaml(text: str, name: str) -> Any:
    try:
        loader = _Loader(text)
        loader.name = name
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        raise ConfigError(f"{name} is not valid YAML: {error}") from error


def read_yaml(path: Path) -> dict[str, Any]:
    """Reads one YAML mapping.

    Raises:
        ConfigError: The file is missing, is not YAML, or is not a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        siblings = (
            sorted(p.name for p in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        )
        known = f"; {path.parent} has {', '.join(siblings)}" if siblings else ""
        raise ConfigError(f"the configuration {path} does not exist{known}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the configuration {path} cannot be read: {error}") from error
    tree = _parse_yaml(text, str(path))
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} must hold keys and values, not a {type(tree).__name__}")
    return tree


def merge_trees(base: Mapping[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    """Lays `top` over `base`: mappings are merged, everything else is replaced."""
    merged = dict(base)
    for key, value in top.items():
        old = merged.get(key)
        both = isinstance(value, dict) and isinstance(old, dict)
        merged[key] = merge_trees(old, value) if both else value  # type: ignore[arg-type]
    return merged


def read_config_tree(path: Path, chain: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Reads a YAML mapping with its `extends:` parents, not yet validated.

    Raises:
        ConfigError: A file is missing or is not a mapping, or `extends` goes in a circle.
    """
    path = path.resolve()
    if path in chain:
        circle = " -> ".join(str(p) for p in (*chain, path))
        raise ConfigError(f"`extends` goes in a circle: {circle}")
    return _resolve_extends(read_yaml(path), path, (*chain, path))


def _resolve_extends(tree: dict[str, Any], path: Path, chain: tuple[Path, ...]) -> dict[str, Any]:
    """Lays each group of keys over the one parent file that its `extends` names."""
    tree = {
        k: _resolve_extends(v, path, chain) if isinstance(v, dict) else v for k, v in tree.items()
    }
    parent = tree.pop("extends", None)
    if parent is None:
        return tree
    if not isinstance(parent, str):
        raise ConfigError(f"{path}: `extends` must be one path, not {parent!r}")
    return merge_trees(read_config_tree(path.parent / parent, chain), tree)


def apply_overrides(tree: dict[str, Any], overrides: Sequence[str]) -> None:
    """Changes a tree by `key=value` texts, whose keys are dotted and whose values are YAML.

    Raises:
        ConfigError: A text has another form, or its key leads through a value.
    """
    for override in overrides:
        _apply_override(tree, override)


def _apply_override(tree: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ConfigError(f"--set {override!r} must have the form key=value, e.g. training.seed=2")
    node = tree
    *parents, last = key.split(".")
    for name in parents:
        if node.get(name) is None:  # absent, or a key without a value
            node[name] = {}
        child = node[name]
        if not isinstance(child, dict):
            raise ConfigError(f"--set {override!r}: {name!r} is a value, not a group of keys")
        node = child
    value = _parse_yaml(text, f"--set {key}")
    node.update(merge_trees(node, {last: value}))


def load_config(cls: type[ConfigT], path: Path, overrides: Sequence[str] = ()) -> ConfigT:
    """Reads a configuration, its `extends:` parents and `key=value` overrides.

    Raises:
        ConfigError: A file is missing, a key is unknown, or a value is not allowed.
    """
    tree = read_config_tree(path)
    apply_overrides(tree, overrides)
    return parse_config(cls, tree, str(path))


def parse_config(cls: type[ConfigT], tree: Mapping[str, Any], source: str) -> ConfigT:
    """Validates a tree of plain values; `source` is named in errors."""
    try:
        # Through JSON, so that YAML's lists fill tuples although every scalar is checked strictly.
        text = json.dumps(tree)
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(
            f"{source} holds what is no text, number, list or group: {error}"
        ) from error
    try:
        return cls.model_validate_json(text)
    except ValidationError as error:
        lines = [_explain(cls, item) for item in _own_mistakes(error)]
        raise ConfigError(
            f"{source} is not a valid configuration:\n  " + "\n  ".join(lines)
        ) from error


def _own_mistakes(error: ValidationError) -> list[Any]:
    """Drops `too few items` of lists whose items are there but were refused themselves."""
    items = error.errors()
    places = {item["loc"][:n] for item in items for n in range(len(item["loc"]))}
    return [item for item in items if item["type"] != "too_short" or item["loc"] not in places]


def _explain(cls: type[BaseModel], item: Any) -> str:
    """Writes one of pydantic's complaints as: key, what is wrong, the value, what is allowed."""
    location = [str(part) for part in item["loc"]]
    key = ".".join(location) or "(whole file)"
    if item["type"] == "extra_forbidden":
        known = _fields_at(cls, location[:-1])
        hint = nearest(location[-1], known) or f"; known keys: {', '.join(sorted(known))}"
        return f"{key}: unknown key{hint}"
    if item["type"] == "missing":
        return f"{key}: required, but not given"
    message = item["msg"].removeprefix("Value error, ")
    value = item.get("input")
    if isinstance(value, str | int | float | bool) or value is None:
        message += f" (got {value!r})"
    return f"{key}: {message}"


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if typing.get_origin(annotation) in (typing.Union, types.UnionType, tuple, list, dict) or (
        typing.get_origin(annotation) is typing.Annotated
    ):
        return [m for part in typing.get_args(annotation) for m in _models_in(part)]
    return []


def _fields_at(cls: type[BaseModel], location: Sequence[str]) -> set[str]:
    """Returns the known keys of the group at `location`, as far as it can be followed."""
    models: list[type[BaseModel]] = [cls]
    for part in location:
        fields = [m.model_fields[part] for m in models if part in m.model_fields]
        if fields:
            models = [m for field in fields for m in _models_in(field.annotation)]
    return {name for m in models for name in m.model_fields}


def to_yaml(config: StrictModel) -> str:
    """Writes a resolved configuration such that `load_config` reads the same one back."""
    tree = config.model_dump(mode="json")
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


class _Dumper(yaml.SafeDumper):
    """Quotes whatever YAML 1.1 or our loader could read as something other than text."""


_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))


def _represent_str(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    return dumper.represent_scalar(
        "tag:yaml.org,2002:str", value, style=None if len(value) > 3 else '"'
    )


_Dumper.add_representer(str, _represent_str)


def fingerprint(config: StrictModel) -> str:
    """Returns 12 hexadecimal digits that identify a resolved configuration."""
    text = json.dumps(config.model_dump(mode="json"), sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def flat_params(config: StrictModel) -> dict[str, str | int | float | bool | None]:
    """Returns every value under its dotted key; lists become JSON text."""
    flat: dict[str, str | int | float | bool | None] = {}

    def walk(tree: Mapping[str, Any], prefix: str) -> None:
        for key, value in tree.items():
            if isinstance(value, dict):
                walk(value, f"{prefix}{key}.")
            elif isinstance(value, list):
                flat[prefix + key] = json.dumps(value, ensure_ascii=False)
            else:
                flat[prefix + key] = value

    walk(config.model_dump(mode="json"), "")
    return flat
