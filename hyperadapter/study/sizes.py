"""Points that are made as large, or as dear, as others: the `match` rules of a study."""

from __future__ import annotations

from typing import NamedTuple

from hyperadapter.config import ModelConfig, RunConfig
from hyperadapter.core.errors import ConfigError
from hyperadapter.core.schema import parse_config
from hyperadapter.forecast import micro_batch_flops, vocabulary_of
from hyperadapter.match import Family, adapter_parameters, nearest_size
from hyperadapter.model.accounting import count_parameters
from hyperadapter.model.vocabulary import Vocabulary
from hyperadapter.study.axes import Axes, Tree, is_chosen, lay, place_of, point_name, run_tree
from hyperadapter.study.config import MatchConfig, StudyConfig

__all__ = ["Counts", "Sizes"]

_ANY_LENGTH = 10**9
"""Optimizer steps of a run whose budget is not looked at yet: enough for every schedule."""


class Counts(NamedTuple):
    """What a model counts.

    Attributes:
        parameters: All of them.
        adapter_parameters: Of adapters, or of what generates them.
        step_flops: Operations of one optimizer step.
    """

    parameters: int
    adapter_parameters: int
    step_flops: int


class Sizes:
    """Finds the sizes of a study's models; what was found once is kept."""

    def __init__(self, study: StudyConfig) -> None:
        self._study = study
        self._trees: dict[str, Tree] = {}
        self._vocabularies: dict[str, Vocabulary] = {}
        self.misses: dict[str, float] = {}
        """By point, how far what was matched is from what was aimed at, as a share of it."""

    def tree(self, axes: Axes, chain: tuple[str, ...] = ()) -> Tree:
        """Returns the run of a point at its matched size, but for its length.

        Args:
            axes: The point's values.
            chain: Names of the points whose sizes wait for this one.

        Raises:
            ConfigError: The point is no valid run, or no size matches.
        """
        name = point_name(axes)
        if name in chain:
            circle = " -> ".join((*chain, name))
            raise ConfigError(
                f"match goes in a circle: {circle}; keep the last one out of a rule's `where`"
            )
        if name not in self._trees:
            self._trees[name] = self._matched(axes, (*chain, name))
        return self._trees[name]

    def _matched(self, axes: Axes, chain: tuple[str, ...]) -> Tree:
        tree = run_tree(self._study, axes)
        rule_of: dict[str, int] = {}
        for number, rule in enumerate(self._study.match, 1):
            if not is_chosen(axes, rule.where):
                continue
            if rule.vary in rule_of:
                raise ConfigError(
                    f"match {rule_of[rule.vary]} and match {number} both change {rule.vary} of "
                    f"{place_of(axes)}; narrow the `where` of one of them"
                )
            rule_of[rule.vary] = number
            other = axes | rule.to
            wanted = self.run(self.tree(other, chain), other)
            try:
                settings = self._solve(self.run(tree, axes), wanted, rule, place_of(axes))
            except ConfigError as error:
                raise ConfigError(f"match {number}: {error}") from error
            tree = lay(tree, {f"model.{key}": size for key, size in settings.items()})
        return tree

    def _solve(
        self, config: RunConfig, other: RunConfig, rule: MatchConfig, place: str
    ) -> dict[str, int]:
        vocabulary = self.vocabulary(config)
        share = rule.times * (
            micro_batch_flops(config, vocabulary)[1]
            / micro_batch_flops(other, self.vocabulary(other))[1]
            if rule.by == "flops"
            else 1
        )

        def count(model: ModelConfig) -> int:
            return self._count(config.model_copy(update={"model": model}), rule)

        family = Family.of(config.model, rule.vary, place)
        aim = share * self._count(other, rule)
        size = nearest_size(family, count, aim)
        miss = float(count(family.at(size)) / aim - 1)
        self.misses[config.name] = max(miss, self.misses.get(config.name, 0.0), key=abs)
        return family.settings(size)

    def _count(self, config: RunConfig, rule: MatchConfig) -> int:
        vocabulary = self.vocabulary(config)
        if rule.by == "flops":
            return micro_batch_flops(config, vocabulary)[0]
        parts = count_parameters(config.model, vocabulary)
        return sum(parts.values()) if rule.by == "params" else adapter_parameters(parts)

    def run(self, tree: Tree, axes: Axes) -> RunConfig:
        """Returns a point's run, with any value where its budget decides.

        Raises:
            ConfigError: It is not valid.
        """
        tree = lay(tree, {"name": point_name(axes), "run_dir": self._study.folder})
        budget = self._study.budget
        if budget.measure:
            tree = lay(tree, {"training.max_steps": _ANY_LENGTH})
        if budget.validations is not None:
            tree = lay(tree, {"training.validation.every_steps": 1})
        if budget.checkpoints is not None:
            tree = lay(tree, {"training.checkpoint.every_steps": 1})
        return parse_config(RunConfig, tree, place_of(axes))

    def vocabulary(self, config: RunConfig) -> Vocabulary:
        """Returns what the model of a run is built for."""
        key = config.data.model_dump_json(exclude={"sources", "stream"})
        if key not in self._vocabularies:
            self._vocabularies[key], _ = vocabulary_of(config)
        return self._vocabularies[key]

    def counts(self, config: RunConfig) -> Counts:
        """Counts a run's model, as the forecast does."""
        vocabulary = self.vocabulary(config)
        parts = count_parameters(config.model, vocabulary)
        flops, tokens = micro_batch_flops(config, vocabulary)
        return Counts(
            sum(parts.values()),
            adapter_parameters(parts),
            flops * config.training.global_batch_tokens // tokens,
        )
