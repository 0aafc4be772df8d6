"""Configuration files: what YAML means, who overrides whom, and what a mistake is told."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, ValidationError

from hyperadapter.core.errors import ConfigError
from hyperadapter.core.schema import (
    StrictModel,
    fingerprint,
    flat_params,
    load_config,
    parse_config,
    read_yaml,
    to_yaml,
)


class Optimizer(StrictModel):
    """A group."""

    learning_rate: float = 0.1
    betas: tuple[float, float] = (0.9, 0.98)


class Cat(StrictModel):
    """One kind of a union."""

    kind: Literal["cat"]
    lives: int = 9


class Dog(StrictModel):
    """Another."""

    kind: Literal["dog"]
    tricks: tuple[str, ...] = ()


class Run(StrictModel):
    """The whole."""

    name: str
    languages: tuple[str, ...] = ()
    seed: int = 1
    flag: bool = False
    optimizer: Optimizer = Optimizer()
    pets: tuple[Annotated[Cat | Dog, Field(discriminator="kind")], ...] = ()
    second: Optimizer | None = None


def write(folder: Path, **files: str) -> Path:
    """Writes YAML files and returns the last one."""
    for name, text in files.items():
        path = folder / f"{name}.yaml"
        path.write_text(text, encoding="utf-8")
    return path


def load(folder: Path, text: str, *overrides: str) -> Run:
    return load_config(Run, write(folder, run=text), overrides)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("true", True),
        ("false", False),
        ("no", "no"),
        ("yes", "yes"),
        ("on", "on"),
        ("off", "off"),
        ("y", "y"),
        ("True", "True"),
        ("3e-4", 3e-4),
        ("1E6", 1e6),
        ("-1.5", -1.5),
        (".5", 0.5),
        ("1.", 1.0),
        ("1.10", 1.1),
        ("7", 7),
        ("-7", -7),
        ("+7", 7),
        ("0", 0),
        ("1_000_000", 1_000_000),
        ("010", "010"),
        ("0x10", "0x10"),
        ("1:30", "1:30"),
        ("2026-11-22", "2026-11-22"),
        ("1.2.3", "1.2.3"),
        ("e5", "e5"),
        ("~", None),
        ("null", None),
        ("", None),
        ("'3e-4'", "3e-4"),
        ('"no"', "no"),
        ("[no, 1]", ["no", 1]),
    ],
)
def test_what_yaml_means(tmp_path: Path, text: str, value: Any) -> None:
    found = read_yaml(write(tmp_path, a=f"key: {text}"))["key"]
    assert found == value
    assert type(found) is type(value)


def test_norwegian_survives(tmp_path: Path) -> None:
    assert load(tmp_path, "name: x\nlanguages: [en, no, yes]").languages == ("en", "no", "yes")


def test_a_key_given_twice_is_told_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"run\.yaml:4: the key 'seed' is given twice; keep one"):
        load(tmp_path, "seed: 1\nname: x\n\nseed: 2\n")
    with pytest.raises(ConfigError, match=r"run\.yaml:3: the key 'betas' is given twice"):
        load(tmp_path, "optimizer:\n  betas: [0, 0]\n  betas: [0, 0]\n")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", "is not valid YAML"),
        ("- a\n- b", "must hold keys and values, not a list"),
        ("just text", "must hold keys and values, not a str"),
        ("? [a, b]\n: 1", r"run\.yaml:1: a key must be a word"),
        ("name: !!binary aGk=", "holds what is no text, number, list or group"),
        ("name: !!python/object:os.system x", "is not valid YAML: could not determine"),
    ],
)
def test_files_that_are_no_configuration(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load(tmp_path, text)
    assert "run.yaml" in str(caught.value)


def test_an_empty_file_is_an_empty_group(tmp_path: Path) -> None:
    assert read_yaml(write(tmp_path, empty="# nothing\n")) == {}


def test_a_missing_file_names_its_neighbours(tmp_path: Path) -> None:
    write(tmp_path, small="", big="")
    with pytest.raises(
        ConfigError, match=r"smal\.yaml does not exist; .* has big\.yaml, small\.yaml"
    ):
        read_yaml(tmp_path / "smal.yaml")
    with pytest.raises(ConfigError, match=r"does not exist$"):
        read_yaml(tmp_path / "nowhere" / "x.yaml")


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_yaml(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"name: \xe9")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_yaml(tmp_path / "latin.yaml")


class TestExtends:
    def test_a_child_lies_over_its_parent_group_by_group(self, tmp_path: Path) -> None:
        write(
            tmp_path, parent="name: p\nseed: 5\noptimizer: {learning_rate: 1.0, betas: [0.1, 0.2]}"
        )
        child = "extends: parent.yaml\nname: c\noptimizer: {learning_rate: 2.0}"
        run = load(tmp_path, child)
        assert (run.name, run.seed) == ("c", 5)
        assert run.optimizer == Optimizer(learning_rate=2.0, betas=(0.1, 0.2))

    def test_lists_are_replaced_and_not_joined(self, tmp_path: Path) -> None:
        write(tmp_path, parent="name: p\nlanguages: [en, de]")
        run = load(tmp_path, "extends: parent.yaml\nlanguages: [fr]")
        assert run.languages == ("fr",)

    def test_a_parent_may_have_a_parent_in_another_folder(self, tmp_path: Path) -> None:
        (tmp_path / "base").mkdir()
        write(tmp_path / "base", grand="name: g\nseed: 7")
        write(tmp_path / "base", parent="extends: grand.yaml\nname: p")
        run = load(tmp_path, "extends: base/parent.yaml")
        assert (run.name, run.seed) == ("p", 7)

    def test_any_group_may_extend_a_file(self, tmp_path: Path) -> None:
        write(tmp_path, fast="learning_rate: 9.0\nbetas: [0.5, 0.5]")
        run = load(tmp_path, "name: x\noptimizer:\n  extends: fast.yaml\n  learning_rate: 3.0")
        assert run.optimizer == Optimizer(learning_rate=3.0, betas=(0.5, 0.5))

    def test_one_file_may_be_extended_twice(self, tmp_path: Path) -> None:
        write(tmp_path, fast="learning_rate: 9.0")
        run = load(
            tmp_path, "name: x\noptimizer: {extends: fast.yaml}\nsecond: {extends: fast.yaml}"
        )
        assert run.optimizer == run.second == Optimizer(learning_rate=9.0)

    def test_a_circle_is_shown(self, tmp_path: Path) -> None:
        write(tmp_path, a="extends: b.yaml", b="extends: a.yaml")
        with pytest.raises(
            ConfigError, match=r"in a circle: \S+a\.yaml -> \S+b\.yaml -> \S+a\.yaml"
        ):
            load_config(Run, tmp_path / "a.yaml")
        with pytest.raises(ConfigError, match="in a circle"):
            load(tmp_path, "optimizer: {extends: run.yaml}")

    def test_only_one_parent(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="`extends` must be one path, not \\['a', 'b'\\]"):
            load(tmp_path, "extends: [a, b]")

    def test_a_missing_parent_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"gone\.yaml does not exist"):
            load(tmp_path, "extends: gone.yaml")


class TestOverrides:
    @pytest.mark.parametrize(
        ("override", "key", "value"),
        [
            ("seed=2", "seed", 2),
            ("optimizer.learning_rate=3e-4", "optimizer.learning_rate", 3e-4),
            ("second.learning_rate=1.0", "second.learning_rate", 1.0),
            ("second={learning_rate: 1.0}", "second.learning_rate", 1.0),
            ("optimizer.betas=[0.1, 0.2]", "optimizer.betas", "[0.1, 0.2]"),
            ("languages=[no, is]", "languages", '["no", "is"]'),
            ("languages=[]", "languages", "[]"),
            ("name='3'", "name", "3"),
            ('name="a = b"', "name", "a = b"),
            ("name=a=b", "name", "a=b"),
            ("second=null", "second", None),
            ("flag=true", "flag", True),
        ],
    )
    def test_a_value_is_yaml(self, tmp_path: Path, override: str, key: str, value: Any) -> None:
        params = flat_params(load(tmp_path, "name: x\nsecond: {learning_rate: 5.0}", override))
        assert params[key] == value
        assert type(params[key]) is type(value)

    def test_the_rest_of_a_group_stays(self, tmp_path: Path) -> None:
        text = "name: x\noptimizer: {betas: [0.1, 0.2]}"
        for override in ("optimizer.learning_rate=1.0", "optimizer={learning_rate: 1.0}"):
            run = load(tmp_path, text, override)
            assert run.optimizer == Optimizer(learning_rate=1.0, betas=(0.1, 0.2))

    def test_the_last_one_wins(self, tmp_path: Path) -> None:
        assert load(tmp_path, "name: x", "seed=2", "seed=3").seed == 3

    def test_a_key_without_value_is_a_group(self, tmp_path: Path) -> None:
        run = load(tmp_path, "name: x\nsecond:", "second.learning_rate=2.0")
        assert run.second == Optimizer(learning_rate=2.0)

    @pytest.mark.parametrize(
        ("override", "message"),
        [
            ("seed", r"--set 'seed' must have the form key=value, e\.g\. training\.seed=2"),
            ("=2", "must have the form key=value"),
            ("name.x=2", "--set 'name.x=2': 'name' is a value, not a group of keys"),
            ("seed=[1", "--set seed is not valid YAML"),
            ("seed={a: 1}", "seed: Input should be a valid integer"),
            ("sede=1", r"sede: unknown key \(did you mean 'seed'\?\)"),
        ],
    )
    def test_mistakes(self, tmp_path: Path, override: str, message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            load(tmp_path, "name: x", override)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: x\nsede: 1", r"sede: unknown key \(did you mean 'seed'\?\)"),
        ("name: x\nzzz: 1", "zzz: unknown key; known keys: flag, languages, name, optimizer, pets"),
        (
            "name: x\noptimizer: {learningrate: 1.0}",
            r"optimizer\.learningrate: unknown key \(did you mean 'learning_rate'\?\)",
        ),
        (
            "name: x\nsecond: {beta: 1}",
            r"second\.beta: unknown key \(did you mean 'betas'\?\)",
        ),
        (
            "name: x\npets: [{kind: dog, trick: [sit]}]",
            r"pets\.0\.dog\.trick: unknown key \(did you mean 'tricks'\?\)",
        ),
        ("name: x\npets: [{kind: cow}]", r"pets\.0: Input tag 'cow' .*'cat', 'dog'"),
        ("seed: 1", "name: required, but not given"),
        ("name: x\nseed: one", r"seed: Input should be a valid integer \(got 'one'\)"),
        ("name: x\nseed: 1.5", r"seed: Input should be a valid integer.* \(got 1\.5\)"),
        ("name: x\nseed: true", r"seed: Input should be a valid integer \(got True\)"),
        ("name: 3", r"name: Input should be a valid string \(got 3\)"),
        ("name: x\nflag: yes", r"flag: Input should be a valid boolean \(got 'yes'\)"),
        ("name: x\nflag: 1", r"flag: Input should be a valid boolean \(got 1\)"),
        ("name: x\nseed:", r"seed: Input should be a valid integer \(got None\)"),
        ("name: x\noptimizer: {learning_rate: .inf}", r"learning_rate: .*finite number"),
        ("name: x\noptimizer: {learning_rate: .nan}", r"learning_rate: .*finite number"),
    ],
)
def test_mistakes_are_told_with_key_value_and_remedy(
    tmp_path: Path, text: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load(tmp_path, text)
    assert "run.yaml is not a valid configuration:" in str(caught.value)


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, "sede: 1\nflag: 1")
    assert str(caught.value).count("\n") == 3


class Kennel(StrictModel):
    """A list that must not be empty."""

    pets: tuple[Cat, ...] = Field(min_length=1)
    names: tuple[str, ...] = Field(min_length=1)


def test_a_mistake_in_an_item_does_not_make_its_list_too_short() -> None:
    tree = {"pets": [{"kind": "cat", "live": 1}], "names": []}
    with pytest.raises(ConfigError) as caught:
        parse_config(Kennel, tree, "test")
    first, *lines = str(caught.value).split("\n")
    assert first == "test is not a valid configuration:"
    assert len(lines) == 2
    assert "pets.0.live: unknown key (did you mean 'lives'?)" in lines[0]
    assert "names: Tuple should have at least 1 item" in lines[1]


def test_a_configuration_cannot_be_changed() -> None:
    run = Run(name="x")
    with pytest.raises(ValidationError, match="frozen"):
        run.seed = 2


TRICKY = """no yes on null ~ true 3e-4 1E5 010 1:30 1_0 = << - #x 2026-11-22 .inf 0x1f 0o17 ' \""""
TEXT = st.one_of(
    st.text(st.characters(codec="utf-8")),
    st.sampled_from([*TRICKY.split(), "", " ", "a: b", "\n", "\x85"]),
    st.from_regex(r"[-+]?[0-9._eE:]{1,8}", fullmatch=True),
)
FLOAT = st.floats(allow_nan=False, allow_infinity=False)
OPTIMIZER = st.builds(Optimizer, learning_rate=FLOAT, betas=st.tuples(FLOAT, FLOAT))
RUN = st.builds(
    Run,
    name=TEXT,
    languages=st.lists(TEXT, max_size=3).map(tuple),
    seed=st.integers(),
    flag=st.booleans(),
    optimizer=OPTIMIZER,
    pets=st.lists(
        st.builds(Dog, kind=st.just("dog"), tricks=st.lists(TEXT, max_size=2).map(tuple))
        | st.builds(Cat, kind=st.just("cat")),
        max_size=2,
    ).map(tuple),
    second=st.none() | OPTIMIZER,
)


@given(RUN)
def test_what_is_written_is_read_back(tmp_path: Path, run: Run) -> None:
    path = tmp_path / "resolved.yaml"
    path.write_text(to_yaml(run), encoding="utf-8", newline="")
    read = load_config(Run, path)
    assert read == run
    assert fingerprint(read) == fingerprint(run)


@given(RUN, RUN)
def test_fingerprints_differ_when_configurations_do(one: Run, two: Run) -> None:
    assert (fingerprint(one) == fingerprint(two)) == (to_yaml(one) == to_yaml(two))


def test_the_fingerprint_is_the_same_tomorrow() -> None:
    assert fingerprint(Run(name="x")) == "8075357d7147"


def test_defaults_and_given_values_are_the_same_experiment(tmp_path: Path) -> None:
    assert fingerprint(load(tmp_path, "name: x\nseed: 1")) == fingerprint(Run(name="x"))
    assert fingerprint(load(tmp_path, "name: x\nseed: 2")) != fingerprint(Run(name="x"))


def test_flat_params_are_named_as_set_names_them() -> None:
    run = Run(name="x", languages=("en", "þ"), pets=(Cat(kind="cat"),))
    assert flat_params(run) == {
        "name": "x",
        "languages": '["en", "þ"]',
        "seed": 1,
        "flag": False,
        "optimizer.learning_rate": 0.1,
        "optimizer.betas": "[0.9, 0.98]",
        "pets": '[{"kind": "cat", "lives": 9}]',
        "second": None,
    }


def test_a_tree_in_memory_is_named_by_its_source() -> None:
    with pytest.raises(ConfigError, match="checkpoint 5 is not a valid configuration"):
        parse_config(Run, {"name": 1}, "checkpoint 5")
