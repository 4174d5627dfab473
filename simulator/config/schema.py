"""What may stand in an experiment's config: keys, types, ranges and defaults."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Lt, MaxLen, MinLen
from pydantic import (
    AfterValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    create_model,
    model_validator,
)

from algorithms.pacing import Pacing
from algorithms.registry import PACINGS, SELECTIONS, STRATEGIES
from algorithms.selection import Selection, Uniform
from algorithms.strategy import Strategy
from simulator.config.faults import FaultsConfig
from simulator.config.fleet import Fleet, NetworkConfig
from simulator.config.own_strategy import check_scale
from simulator.config.types import (
    Count,
    Length,
    Name,
    OneOf,
    PathOrName,
    Revision,
    Section,
)
from traces.canonical import canonical
from traces.options import Positive


class Task(Section):
    """What is fine-tuned on what, and to do what."""

    kind: Literal["classification", "causal-lm"] = "classification"
    model: PathOrName = "minilm-l6"
    revision: Revision | None = None  # of a model on the hub: a commit, branch or tag
    targets: Annotated[tuple[str, ...], MinLen(1)] = ("query", "value")
    data: PathOrName = "wordnet-16"
    # What the files of the data call a column, as {text: body}.
    columns: Annotated[dict[str, str], MaxLen(16)] = Field(default_factory=dict)
    max_length: Annotated[int, Ge(4), Le(512)] = 32  # tokens; a device pads to it


class Shards(Section):
    """How the training set is divided among the devices.

    ``drawn``: each device draws ``examples`` of its own, with replacement, and two devices may hold
    the same one; for fleets of more devices than the data can be divided among. ``natural``: each
    device has the examples of one client, whose name stands in ``column``.
    """

    kind: Literal["dirichlet", "iid", "drawn", "natural"] = "dirichlet"
    column: Annotated[str, MinLen(1), MaxLen(64)] = "client"
    alpha: Positive = 0.5  # of the Dirichlet distribution over labels; small is more skewed
    min_examples: Count = 16
    # Of each device, where they are drawn.
    examples: Annotated[int, Ge(1), Le(1_000_000)] = 64


class LocalWork(Section):
    """What a device does in a round: ``steps`` or ``epochs``, one of the two.

    ``proximal_mu`` above 0 is FedProx: mu/2 ||w - w_broadcast||^2 is added to the local loss.
    """

    batch_size: Annotated[int, Ge(1), Le(1_000_000)] = 16
    steps: Annotated[int, Ge(1), Le(1_000_000)] | None = None
    epochs: Annotated[float, Gt(0), Le(10_000)] | None = None
    proximal_mu: Annotated[float, Ge(0), Le(1_000_000)] = 0.0

    @model_validator(mode="after")
    def _exactly_one(self) -> LocalWork:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give steps or epochs, exactly one of the two")
        return self


class Training(Section):
    """How the real training is done, on the machine that simulates."""

    learning_rate: Positive = 2e-3
    weight_decay: Annotated[float, Ge(0), Le(1_000)] = 0.01
    dtype: Literal["auto", "bf16", "fp32"] = "auto"  # auto: bf16 where the processor has it
    compute: Literal["auto", "cpu", "cuda"] = "auto"
    attention: Literal["eager", "sdpa"] = "eager"
    stack: Annotated[int, Ge(1), Le(1_000)] = 1  # devices in one pass, where plans are alike
    max_loss: Positive = 10_000.0  # a step with a larger loss has diverged, as one without a number
    when_diverged: Literal["stop", "drop"] = "stop"  # the run, or this update alone


TrainingOrNone = Annotated[
    Annotated[Training, Tag("torch")] | Annotated[Literal["none"], Tag("none")],
    Discriminator(lambda value: "none" if isinstance(value, str) else "torch"),
]
"""``none``: timing only, no model is loaded and nothing is learned."""


class CostModelConfig(Section):
    """What the simulated devices compute with; the host's own dtype is ``training.dtype``."""

    compute_bits: Literal[32, 16] = 32
    attention: Literal["eager", "sdpa"] = "eager"
    # Of adapters, as it costs a device. The host trains without: masks would be drawn by the order
    # in which it runs the clients.
    lora_dropout: Annotated[float, Ge(0), Lt(1)] = 0.0
    kind: Literal["closed_form", "measured"] = "closed_form"
    table: PathOrName | None = None  # of measured steps, which ``fedclock calibrate`` writes
    # A larger model whose time, bytes, memory and energy are charged, while ``task.model`` is
    # trained in its place.
    model: PathOrName | None = None
    revision: Revision | None = None
    targets: Annotated[tuple[str, ...], MinLen(1)] | None = None  # None: as in ``task.targets``

    @model_validator(mode="after")
    def _has_table(self) -> CostModelConfig:
        if (self.kind == "measured") != (self.table is not None):
            raise ValueError("give a table with kind measured, and none with closed_form")
        if self.model is None and (self.revision or self.targets):
            raise ValueError("revision and targets say more of cost.model, which is not given")
        if self.model and self.table:
            raise ValueError(
                "give a table or a model: measured steps are those of the model trained"
            )
        return self


class Aggregation(Section):
    """What the server does with updates before the strategy aggregates.

    ``algorithms/merging/robust.py`` has the rules.

    ``trim_share`` of the values of a coordinate are not believed at either end.
    """

    max_norm: Positive | None = None  # L2; an update that changes more is refused
    clip_norm: Positive | None = None  # L2; an update that changes more is scaled down to it
    trim_share: Annotated[float, Ge(0), Lt(0.5)] = 0.0


class EvaluationConfig(Section):
    """The global model is tested after every ``every`` rounds; that takes no simulated time."""

    every: Count = 1
    examples: Count = 400


class StopConfig(Section):
    """A run ends after ``rounds``, or earlier at a time or a target of the task's first metric.

    ``accuracy`` is a target as well, of the tasks that have one.
    """

    rounds: Annotated[int, Ge(1), Le(1_000_000)]
    simulated_s: Length | None = None
    accuracy: Annotated[float, Gt(0), Le(1)] | None = None
    target: Positive | None = None

    @model_validator(mode="after")
    def _at_most_one(self) -> StopConfig:
        if self.accuracy is not None and self.target is not None:
            raise ValueError("give accuracy or target, at most one of the two")
        return self


NOT_SIMULATED = ("seed", "name", "label", "targets")
"""Keys that the hash of a config leaves out: seed, names, and what only the analysis reads."""

Targets = tuple[Annotated[float, Field(gt=0, le=1)], ...]


class RunConfig(Section):
    """One run: one strategy, one seed."""

    name: Name
    label: Name
    seed: Annotated[int, Ge(0), Lt(2**63)] = 0
    task: Task = Task()
    shards: Shards = Shards()
    local: LocalWork = LocalWork(steps=10)
    training: TrainingOrNone = Training()
    fleet: Fleet
    faults: FaultsConfig = FaultsConfig()
    network: NetworkConfig = NetworkConfig()
    cost: CostModelConfig = CostModelConfig()
    selection: Annotated[Selection, OneOf(SELECTIONS)] = Uniform()
    pacing: Annotated[Pacing, OneOf(PACINGS)]
    aggregation: Aggregation = Aggregation()
    evaluation: EvaluationConfig = EvaluationConfig()
    stop: StopConfig
    targets: Targets = ()  # accuracies that runs are timed to; no run depends on them
    strategy: Annotated[Strategy[Any], OneOf(STRATEGIES)]

    def resolved(self) -> dict[str, Any]:
        """Every key with its value, as plain data: running it again gives the same run."""
        return self.model_dump(mode="json", exclude_none=True)

    @property
    def hash(self) -> str:
        """Eight hexadecimal digits that change with any key that decides a result, but the seed."""
        plain = {k: v for k, v in self.resolved().items() if k not in NOT_SIMULATED}
        return hashlib.sha256(canonical(plain).encode()).hexdigest()[:8]

    @property
    def folder(self) -> Path:
        """Where the run stands below the output folder."""
        return Path(self.name) / f"{self.label}-{self.hash}-s{self.seed}"


class RecordedStrategy(Section):
    """The strategy of a run folder's config, as plain data: none of its code is imported."""

    model_config = ConfigDict(extra="allow")

    kind: str
    rank: Annotated[int, Ge(1), Le(1_000_000)]


RecordedConfig: type[RunConfig] = create_model(
    "RunConfig", __base__=RunConfig, strategy=(RecordedStrategy, ...)
)
"""The config of a run folder that is read, and not run."""


@cache
def config_for(own: type[Strategy[Any]]) -> type[RunConfig]:
    """A config whose strategy is this class of the user's, held to its fields as ours are.

    Raises PydanticUserError or NameError where the type of a field cannot be checked.
    """
    strategy = Annotated[Strategy[Any], OneOf({own.kind: own}), AfterValidator(check_scale)]
    model = create_model("RunConfig", __base__=RunConfig, strategy=(strategy, ...))
    model.model_rebuild()  # raises where a name in an annotation is unknown
    return model
