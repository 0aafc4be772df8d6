"""The configuration of one run: data, model, training, evaluation, tracking.

The resolved file in the run folder is the truth, and its fingerprint identifies the experiment.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from data_pipeline.config import DataConfig
from hyperadapter.core.errors import nearest
from hyperadapter.core.languages import family_of, parse_language
from hyperadapter.core.schema import StrictModel

__all__ = [
    "AdapterConfig",
    "CheckpointConfig",
    "EvaluationConfig",
    "HyperNetworkConfig",
    "Metric",
    "ModelConfig",
    "Part",
    "QualityConfig",
    "RecoveryConfig",
    "ResourceGroupsConfig",
    "RunConfig",
    "SamplingConfig",
    "ScheduleConfig",
    "TrackingConfig",
    "TrainingConfig",
    "ValidationConfig",
]

HyperInput = Literal["src", "tgt", "layer"]
Part = Literal[
    "embedding", "encoder", "decoder", "adapters", "hyper_embeddings", "hyper_body", "hyper_heads"
]
Metric = Literal["bleu", "chrf", "chrfpp", "ter", "spbleu"]
_BASIC_METRICS: tuple[Metric, ...] = ("bleu", "chrf", "chrfpp")
Beta = Annotated[float, Field(ge=0, lt=1)]
Scale = Annotated[float, Field(gt=0)]
_ALL_INPUTS: tuple[HyperInput, ...] = ("src", "tgt", "layer")


class HyperNetworkConfig(StrictModel):
    """The network that generates adapters (Baziotis et al. 2022, section 3)."""

    hyper_dim: int = Field(ge=1, description="Width d_h of the hidden layers")
    num_blocks: int = Field(
        default=2, ge=0, description="Residual blocks after the input projection"
    )
    language_dim: int = Field(default=50, ge=1, description="Size of a language embedding")
    layer_dim: int = Field(default=50, ge=1, description="Size of a layer embedding")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="Inside the residual blocks")
    tied_language_embeddings: bool = Field(
        default=True, description="One table for a language as source and as target"
    )
    head_rank: int | None = Field(
        default=None, ge=1, description="Rank of the two large heads' matrices; null: full rank"
    )
    rescale: Literal["sqrt", "none", "mip"] = Field(
        default="sqrt",
        description="Heads' outputs: over sqrt(hyper_dim), as they are, or magnitude-invariant",
    )
    init: Literal["default", "calibrated", "hyperfan"] = Field(
        default="calibrated",
        description="default: heads as the main network; calibrated: outputs as a direct adapter; "
        "hyperfan: outputs that keep the variance of what they act on",
    )
    encoder_inputs: tuple[HyperInput, ...] = Field(
        default=_ALL_INPUTS, min_length=1, description="What encoder adapters depend on"
    )
    decoder_inputs: tuple[HyperInput, ...] = Field(
        default=_ALL_INPUTS, min_length=1, description="What decoder adapters depend on"
    )

    @field_validator("encoder_inputs", "decoder_inputs")
    @classmethod
    def _inputs_once(cls, inputs: tuple[HyperInput, ...]) -> tuple[HyperInput, ...]:
        if len(set(inputs)) < len(inputs):
            raise ValueError(f"an input is given twice: {', '.join(inputs)}")
        return inputs


class AdapterConfig(StrictModel):
    """Adapters after every encoder and decoder layer (Bapna and Firat 2019)."""

    kind: Literal["none", "language", "direction", "family", "hyper"] = Field(
        description="Who provides the adapters' weights"
    )
    bottleneck_dim: int = Field(default=128, ge=1, description="Width R of the bottleneck")
    placement: Literal["sequential", "parallel"] = Field(
        default="sequential", description="After the layer, or beside its feed-forward block"
    )
    generated_layer_norm: bool = Field(
        default=True, description="Gain and bias per adapter, or one pair per layer for all of them"
    )
    start: Literal["random", "identity"] = Field(
        default="random", description="identity: up projections start at 0, adapters add nothing"
    )
    encoder_layers: tuple[int, ...] | None = Field(
        default=None, description="Encoder layers that carry adapters, from 0; null: all"
    )
    decoder_layers: tuple[int, ...] | None = Field(
        default=None, description="Decoder layers that carry adapters, from 0; null: all"
    )
    families: dict[str, str] = Field(
        default_factory=dict,
        description="For kind: family; a language's group, where it is not its family of the table",
    )
    generation: Literal["all_layers", "layer_by_layer"] = Field(
        default="all_layers",
        description="layer_by_layer holds one layer's weights at a time and makes them twice",
    )
    hyper_network: HyperNetworkConfig | None = Field(default=None, description="For kind: hyper")

    @field_validator("families")
    @classmethod
    def _canonical_languages(cls, families: dict[str, str]) -> dict[str, str]:
        for code in families:
            if parse_language(code) != code:
                raise ValueError(f"families: write {code!r} as {parse_language(code)!r}")
        return families

    @model_validator(mode="after")
    def _only_what_is_generated_can_be_made_twice(self) -> AdapterConfig:
        if self.generation == "layer_by_layer" and self.kind != "hyper":
            raise ValueError(
                f"generation: layer_by_layer is for kind: hyper; {self.kind} adapters are stored"
            )
        return self

    @model_validator(mode="after")
    def _families_iff_family(self) -> AdapterConfig:
        if self.families and self.kind != "family":
            raise ValueError(f"families are for kind: family and would be ignored by {self.kind}")
        return self

    @model_validator(mode="after")
    def _hyper_network_iff_hyper(self) -> AdapterConfig:
        if self.kind != "hyper" and not self.generated_layer_norm:
            raise ValueError(
                f"generated_layer_norm: false is for kind: hyper; {self.kind} adapters have a gain "
                "and a bias each"
            )
        if self.kind == "hyper" and self.hyper_network is None:
            raise ValueError("kind: hyper needs the group hyper_network (at least its hyper_dim)")
        return self


class ModelConfig(StrictModel):
    """A pre-LayerNorm Transformer encoder-decoder with one shared embedding."""

    d_model: int = Field(ge=2, description="Width of the residual stream")
    ffn_dim: int = Field(ge=1, description="Width of the feed-forward blocks")
    num_heads: int = Field(ge=1, description="Attention heads")
    num_encoder_layers: int = Field(ge=1, description="Encoder layers")
    num_decoder_layers: int = Field(ge=1, description="Decoder layers")
    dropout: float = Field(default=0.1, ge=0, lt=1, description="After embeddings and sublayers")
    adapter: AdapterConfig

    @model_validator(mode="after")
    def _heads_divide_width(self) -> ModelConfig:
        if self.d_model % self.num_heads or self.d_model % 2:
            raise ValueError(
                f"d_model {self.d_model} must be even and a multiple of num_heads {self.num_heads}"
            )
        return self

    @model_validator(mode="after")
    def _adapted_layers_exist(self) -> ModelConfig:
        sides = {"encoder": self.num_encoder_layers, "decoder": self.num_decoder_layers}
        for side, count in sides.items():
            layers = getattr(self.adapter, f"{side}_layers")
            if layers is None:
                continue
            if list(layers) != sorted(set(layers)) or any(not 0 <= n < count for n in layers):
                raise ValueError(
                    f"adapter.{side}_layers {list(layers)} must be ascending numbers from 0 to "
                    f"{count - 1}, each once"
                )
        if self.adapter.kind != "none" and not self.adapted_layers:
            raise ValueError("no layer carries an adapter; for a dense model use adapter.kind none")
        return self

    @property
    def num_layers(self) -> int:
        """Encoder and decoder layers; the encoder's are numbered first."""
        return self.num_encoder_layers + self.num_decoder_layers

    @property
    def adapted_layers(self) -> tuple[int, ...]:
        """The layers that carry adapters, by number, ascending."""
        encoder, decoder = self.adapter.encoder_layers, self.adapter.decoder_layers
        in_encoder = range(self.num_encoder_layers) if encoder is None else encoder
        in_decoder = range(self.num_decoder_layers) if decoder is None else decoder
        return (*in_encoder, *(self.num_encoder_layers + layer for layer in in_decoder))


class ScheduleConfig(StrictModel):
    """Learning rate as a function of the step."""

    kind: Literal["inverse_sqrt", "cosine", "wsd"] = Field(description="Shape after the warm-up")
    warmup_steps: int = Field(ge=0, description="Linear rise from 0")
    decay_steps: int = Field(default=0, ge=0, description="wsd only: linear fall at the end")
    final_fraction: float = Field(
        default=0.0, ge=0, le=1, description="cosine and wsd: last rate over the highest"
    )

    @model_validator(mode="after")
    def _only_what_the_kind_uses(self) -> ScheduleConfig:
        if self.decay_steps and self.kind != "wsd":
            raise ValueError(
                f"decay_steps {self.decay_steps} is for kind: wsd and would be ignored by "
                f"kind: {self.kind}; set it to 0"
            )
        if self.final_fraction and self.kind == "inverse_sqrt":
            raise ValueError(
                f"final_fraction {self.final_fraction} would be ignored by kind: inverse_sqrt; "
                "set it to 0"
            )
        return self


class CheckpointConfig(StrictModel):
    """When to save, and how many checkpoints to keep."""

    every_steps: int = Field(ge=1, description="Save each so many steps, and at the end")
    keep: int = Field(default=2, ge=1, description="Newest checkpoints kept")
    keep_every_steps: int = Field(
        default=0, ge=0, description="Keep all whose step is a multiple of this; 0: none"
    )
    keep_best: int = Field(default=0, ge=0, description="Best checkpoints kept, by best_metric")
    best_metric: str = Field(
        default="valid/macro/nll", min_length=1, description="A metric of validation"
    )
    best_is: Literal["lowest", "highest"] = Field(
        default="lowest", description="Which value of best_metric is the best"
    )
    background: bool = Field(
        default=True, description="Train on while a copy in host memory is written to disk"
    )

    @model_validator(mode="after")
    def _kept_ones_are_saved(self) -> CheckpointConfig:
        if self.keep_every_steps % self.every_steps:
            raise ValueError(
                f"keep_every_steps {self.keep_every_steps} must be a multiple of every_steps "
                f"{self.every_steps}"
            )
        return self


class RecoveryConfig(StrictModel):
    """What a run does about a loss or a gradient that goes wrong."""

    max_rollbacks: int = Field(
        default=10, ge=0, description="Returns to the last checkpoint, over all starts; 0: stop"
    )
    spike_factor: float = Field(
        default=0.0,
        ge=0,
        description="A step whose loss is so many times the median of the steps before goes wrong; "
        "0: only what is not finite",
    )
    hang_s: float = Field(
        default=1800.0,
        ge=0,
        description="A rank without progress for so many seconds shows its stacks and ends the "
        "run; 0: never",
    )

    @field_validator("spike_factor")
    @classmethod
    def _above_one(cls, factor: float) -> float:
        if factor and factor <= 1:
            raise ValueError(f"spike_factor {factor} must be above 1, or 0 for none")
        return factor


class ValidationConfig(StrictModel):
    """Loss on the validation split, per direction."""

    every_steps: int = Field(ge=1, description="Validate each so many steps, and at the end")
    max_sentences: int = Field(default=200, ge=1, description="Per direction")


class TrainingConfig(StrictModel):
    """Optimisation, its processes and its precision."""

    seed: int = Field(
        default=1, ge=0, lt=2**32, description="Of initialisation, dropout and data order"
    )
    num_processes: int = Field(default=1, ge=1, description="Started here when no launcher did")
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="auto: a GPU if any")
    precision: Literal["fp32", "bf16"] = Field(
        default="fp32", description="Of forward and backward"
    )
    zero_stage: Literal[0, 1, 2, 3] = Field(default=1, description="What DeepSpeed ZeRO shards")
    offload_optimizer: bool = Field(
        default=False, description="Keep the optimizer's state, and update, in host memory"
    )
    micro_batch_tokens: int = Field(
        ge=8, description="Most tokens of one forward pass, padding included, on its longer side"
    )
    global_batch_tokens: int = Field(
        ge=8, description="micro_batch_tokens times micro-batches a step"
    )
    max_steps: int = Field(ge=1, description="Optimizer steps of the whole run")
    learning_rate: float = Field(gt=0, description="Highest rate")
    learning_rate_scale: dict[Part, Scale] = Field(
        default_factory=dict, description="Factors on the learning rate of parts of the model"
    )
    schedule: ScheduleConfig
    adam_betas: tuple[Beta, Beta] = Field(default=(0.9, 0.98), description="AdamW")
    adam_eps: float = Field(default=1e-8, gt=0, description="AdamW")
    weight_decay: float = Field(default=0.0, ge=0, description="AdamW, on matrices only")
    clip_norm: float = Field(default=1.0, ge=0, description="Global gradient norm; 0 never clips")
    label_smoothing: float = Field(default=0.1, ge=0, lt=1, description="Of the training loss")
    start_from: str = Field(
        default="", description="A weights.safetensors whose parts of the same sizes are taken over"
    )
    frozen: tuple[Part, ...] = Field(
        default=(), description="Parts of the model that are not trained"
    )
    activation_checkpointing: bool = Field(
        default=False, description="Compute each layer twice and keep its input only"
    )
    compile: bool = Field(
        default=False, description="Let torch.compile fuse the layers' operations"
    )
    checkpoint: CheckpointConfig
    validation: ValidationConfig
    recovery: RecoveryConfig = RecoveryConfig()
    log_every_steps: int = Field(default=10, ge=1, description="Steps between log lines")
    health_every_steps: int = Field(
        default=500,
        ge=0,
        description="Steps between looks at gradients, generated weights and dead units; 0: never",
    )

    @property
    def micro_batches_per_step(self) -> int:
        """Micro-batches of one optimizer step, over all ranks."""
        return self.global_batch_tokens // self.micro_batch_tokens

    @model_validator(mode="after")
    def _batch_arithmetic(self) -> TrainingConfig:
        if self.global_batch_tokens % self.micro_batch_tokens:
            raise ValueError(
                f"global_batch_tokens {self.global_batch_tokens} must be a multiple of "
                f"micro_batch_tokens {self.micro_batch_tokens}"
            )
        check_world_size(self, self.num_processes)
        if len(set(self.frozen)) < len(self.frozen):
            raise ValueError(f"frozen names a part twice: {', '.join(self.frozen)}")
        if self.compile and self.zero_stage == 3:
            raise ValueError(
                "compile with zero_stage 3 fails in DeepSpeed; use zero_stage 1 or 2, or compile "
                "false"
            )
        if self.offload_optimizer and self.zero_stage == 0:
            raise ValueError("offload_optimizer needs zero_stage 1, 2 or 3")
        if (
            self.checkpoint.keep_best
            and self.validation.every_steps % self.checkpoint.every_steps
            and self.checkpoint.every_steps % self.validation.every_steps
        ):
            raise ValueError(
                f"checkpoint.keep_best needs checkpoints that are validated: one of "
                f"checkpoint.every_steps {self.checkpoint.every_steps} and validation.every_steps "
                f"{self.validation.every_steps} must be a multiple of the other"
            )
        if self.precision == "bf16" and self.zero_stage == 0:
            raise ValueError(
                "precision bf16 with zero_stage 0 trains wrongly: DeepSpeed runs AdamW once on "
                "zero gradients before training, which shifts its bias correction and decays the "
                "weights once; use zero_stage 1"
            )
        if self.schedule.warmup_steps + self.schedule.decay_steps > self.max_steps:
            raise ValueError(
                f"schedule: warmup_steps {self.schedule.warmup_steps} + decay_steps "
                f"{self.schedule.decay_steps} are more than max_steps {self.max_steps}"
            )
        return self


def check_world_size(config: TrainingConfig, world_size: int) -> None:
    """Checks that the micro-batches of a step can be shared equally.

    Raises:
        ValueError: They cannot; the message names sizes that work.
    """
    count = config.micro_batches_per_step
    if count % world_size:
        fitting = [n for n in range(1, count + 1) if count % n == 0]
        raise ValueError(
            f"{world_size} processes cannot share the {count} micro-batches of a step "
            f"(global_batch_tokens {config.global_batch_tokens} / micro_batch_tokens "
            f"{config.micro_batch_tokens}); use {' or '.join(map(str, fitting))} processes, "
            "or change the batch"
        )


class QualityConfig(StrictModel):
    """When a translation counts as being in another language, and when as overlong."""

    min_letters: int = Field(
        default=15, ge=1, description="Shorter translations' language is not judged"
    )
    min_probability: float = Field(
        default=0.5, ge=0, lt=1, description="Of the other language, among those of the run"
    )
    overlong_ratio: float = Field(
        default=3.0, gt=1, description="Pieces over those of the source, above which it is overlong"
    )


class ResourceGroupsConfig(StrictModel):
    """Least training pairs of the directions of each group; below them all is VERY LOW."""

    high: int = Field(default=1_000_000, ge=1, description="HIGH")
    medium: int = Field(default=100_000, ge=1, description="MED")
    low: int = Field(default=10_000, ge=1, description="LOW")

    @model_validator(mode="after")
    def _descend(self) -> ResourceGroupsConfig:
        if not self.high > self.medium > self.low:
            raise ValueError(
                f"high {self.high}, medium {self.medium} and low {self.low} must descend"
            )
        return self


class SamplingConfig(StrictModel):
    """Translations drawn piece by piece from the model's distribution, as for back-translation."""

    temperature: float = Field(
        default=1.0, gt=0, description="Scores are divided by it; below 1 is nearer to greedy"
    )
    top_k: int | None = Field(
        default=None, ge=1, description="Draw from so many of the best pieces; null: from all"
    )
    top_p: float = Field(
        default=1.0, gt=0, le=1, description="Draw from the fewest pieces of this probability"
    )
    seed: int = Field(default=1, ge=0, lt=2**32, description="Of the draws")


class EvaluationConfig(StrictModel):
    """Decoding and scoring of the test split."""

    beam_size: int = Field(default=4, ge=1, description="Hypotheses kept; 1 is greedy")
    length_penalty: float = Field(
        default=1.0, ge=0, description="Scores are divided by length to this power"
    )
    max_length_ratio: float = Field(default=1.5, gt=0, description="Longest output over the input")
    max_length_extra: int = Field(
        default=10, ge=1, description="Pieces allowed on top of the ratio"
    )
    coverage_penalty: float = Field(
        default=0.0, ge=0, description="Weight of source positions that no output attends to"
    )
    no_repeat_ngram: int = Field(
        default=0, ge=0, description="Runs of so many pieces are produced once at most; 0: no limit"
    )
    sampling: SamplingConfig | None = Field(
        default=None, description="Draws translations instead of searching for the best"
    )
    batch_sentences: int = Field(default=64, ge=1, description="Sentences decoded together")
    max_sentences: int = Field(default=1000, ge=1, description="Test sentences per direction")
    num_processes: int = Field(
        default=1, ge=1, description="That decode; on a machine with GPUs, on one each"
    )
    metrics: tuple[Metric, ...] = Field(
        default=_BASIC_METRICS, description="What is computed; ter and spbleu may be added"
    )
    quality: QualityConfig = QualityConfig()
    groups: ResourceGroupsConfig = ResourceGroupsConfig()

    @model_validator(mode="after")
    def _scores_choose(self) -> EvaluationConfig:
        if self.sampling is not None and self.coverage_penalty > 0:
            raise ValueError(
                f"coverage_penalty is {self.coverage_penalty}, but with sampling translations are "
                "drawn, not chosen by their score; set coverage_penalty to 0, or sampling to null"
            )
        return self

    @field_validator("metrics")
    @classmethod
    def _basic_ones_and_more(cls, metrics: tuple[Metric, ...]) -> tuple[Metric, ...]:
        missing = [name for name in _BASIC_METRICS if name not in metrics]
        if missing:
            more = [name for name in metrics if name not in _BASIC_METRICS]
            raise ValueError(
                f"{', '.join(missing)} cannot be left out: tables and studies read them; write "
                f"[{', '.join((*_BASIC_METRICS, *more))}]"
            )
        if len(set(metrics)) < len(metrics):
            raise ValueError(f"a metric is given twice: {', '.join(metrics)}")
        return metrics


class TrackingConfig(StrictModel):
    """Where MLflow keeps the run."""

    enabled: bool = Field(default=True, description="Without it, only the run folder's event file")
    uri: str = Field(
        default="", description="Tracking URI; empty is mlflow.db beside the run folder"
    )
    experiment: str = Field(default="hyperadapter", min_length=1, description="MLflow experiment")
    parent: str = Field(
        default="", description="Key of the MLflow run that this one is shown below; empty: none"
    )


class RunConfig(StrictModel):
    """One experiment."""

    name: str = Field(min_length=1, description="Shown in MLflow and reports")
    run_dir: str = Field(min_length=1, description="The run folder")
    data: DataConfig
    model: ModelConfig
    training: TrainingConfig
    evaluation: EvaluationConfig = EvaluationConfig()
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="after")
    def _longest_sentence_fits(self) -> RunConfig:
        longest = self.data.shards.max_sentence_tokens + 1
        if longest > self.training.micro_batch_tokens:
            raise ValueError(
                f"training.micro_batch_tokens {self.training.micro_batch_tokens} cannot hold the "
                f"longest sentence: data.shards.max_sentence_tokens "
                f"{self.data.shards.max_sentence_tokens} + 1 for the language tag; raise the one "
                "or lower the other"
            )
        return self

    @model_validator(mode="after")
    def _best_metric_exists(self) -> RunConfig:
        checkpoint = self.training.checkpoint
        names = ["valid/macro/nll"]
        names += [f"valid/{direction}/nll" for direction in self.data.resolved_directions()]
        if checkpoint.keep_best and checkpoint.best_metric not in names:
            raise ValueError(
                f"training.checkpoint.best_metric {checkpoint.best_metric!r} is no metric of "
                f"validation{nearest(checkpoint.best_metric, names)}; use valid/macro/nll or that "
                f"of a direction, such as {names[-1]}"
            )
        return self

    @model_validator(mode="after")
    def _target_is_visible(self) -> RunConfig:
        tags = self.data.tags
        if "target" in (tags.encoder, tags.decoder):
            return self
        targets: dict[str, list[str]] = {}
        for src, tgt in self.data.resolved_directions():
            targets.setdefault(src, []).append(tgt)
        for src, codes in targets.items():
            hidden = self._alike_to_adapters(codes)
            if len(hidden) > 1:
                raise ValueError(
                    f"nothing tells the model whether to translate {src} into "
                    f"{' or '.join(hidden)}: data.tags.encoder is {tags.encoder!r}, "
                    f"data.tags.decoder is {tags.decoder!r}, and adapters of kind "
                    f"{self.model.adapter.kind!r} do not tell them apart; set "
                    "data.tags.decoder (or data.tags.encoder) to target"
                )
        return self

    def _alike_to_adapters(self, targets: list[str]) -> list[str]:
        """Returns those targets of one source that have the adapters of another one."""
        adapter = self.model.adapter
        in_decoder = adapter.decoder_layers != ()
        if adapter.kind == "direction" or (adapter.kind == "language" and in_decoder):
            return []
        if adapter.kind == "family" and in_decoder:
            families = [adapter.families.get(code) or family_of(code) for code in targets]
            return [c for c, f in zip(targets, families, strict=True) if families.count(f) > 1]
        hyper = adapter.hyper_network
        if adapter.kind == "hyper" and hyper is not None:
            seen = hyper.encoder_inputs if adapter.encoder_layers != () else ()
            seen += hyper.decoder_inputs if in_decoder else ()
            return [] if "tgt" in seen else targets
        return targets
