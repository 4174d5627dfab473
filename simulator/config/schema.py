"""Defines what may stand in an experiment's config: keys, types, ranges and defaults."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection
from dataclasses import dataclass, make_dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_type_hints

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Tag,
    TypeAdapter,
)

from algorithms.merging.privacy import Privacy
from algorithms.merging.robust import Robustness
from algorithms.merging.server_optimizers import ServerOptimizer
from algorithms.pacing import Pacing
from algorithms.registry import PACINGS, SELECTIONS, SERVER_OPTIMIZERS, STRATEGIES
from algorithms.selection import Selection, Uniform
from algorithms.strategy import Strategy
from devices.models.spec import Attention
from devices.options import TrainingOptions
from devices.vocabulary.plan import WeightFormat
from simulator.config.faults import FaultsConfig
from simulator.config.fleet import FleetConfig, NetworkConfig, without_empty_devices
from simulator.config.own_strategy import check_scale
from simulator.config.task import ShardsConfig, TaskConfig
from simulator.config.types import (
    Count,
    Length,
    Name,
    OneOf,
    PathOrName,
    Revision,
    Section,
    Title,
    as_plain,
)
from traces.canonical import canonical
from traces.options import LEFT_OUT, Positive

T = TypeVar("T")

adapter: Callable[[Any], TypeAdapter[Any]] = cache(TypeAdapter)
"""Returns the adapter that reads and writes a type of section; each is made once."""


@dataclass(frozen=True, kw_only=True)
class LocalWork(Section):
    """Local work is what every device is asked to do in a round: steps or epochs."""

    batch_size: Annotated[int, Ge(1), Le(1_000_000)] = 16
    """The examples of a batch."""
    micro_batch: Annotated[int, Ge(1), Le(1_000_000)] | None = None
    """The examples that a device holds at once, where it trains a batch in equal parts."""
    steps: Annotated[int, Ge(1), Le(1_000_000)] | None = None
    """The training steps of a round."""
    epochs: Annotated[float, Gt(0), Le(10_000)] | None = None
    """The passes over a device's examples in a round, in place of steps."""
    proximal_mu: Annotated[float, Ge(0), Le(1_000_000)] = 0.0
    """The weight of FedProx's term mu/2 ||w - w_broadcast||^2 in the local loss; 0 is none."""
    weight_format: WeightFormat = "fp32"
    """The widest format of the frozen weights on a device, under every scheduler."""
    upload_bits: Literal[32, 16, 8, 4] = 32
    """The most bits of an uploaded number of a term, under every scheduler."""
    head_bits: Annotated[Literal[32, 16, 8, 4], LEFT_OUT] = 32
    """The bits of an uploaded number of the task head, under every scheduler."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give steps or epochs, exactly one of the two")
        if self.micro_batch is not None and self.batch_size % self.micro_batch:
            raise ValueError(
                f"micro_batch must divide the batch_size of {self.batch_size}, got "
                f"{self.micro_batch}"
            )

    def steps_for(self, num_examples: int) -> int:
        """Return the training steps of a device with this many examples; at least one."""
        if self.steps is not None:
            return self.steps
        assert self.epochs is not None  # ``__post_init__`` requires steps or epochs
        return max(1, -(-int(self.epochs * num_examples) // self.batch_size))


TrainingOrNone = Annotated[
    Annotated[TrainingOptions, Tag("torch")] | Annotated[Literal["none"], Tag("none")],
    Discriminator(lambda value: "none" if isinstance(value, str) else "torch"),
]
"""``none``: timing only, no model is loaded and nothing is learned."""


@dataclass(frozen=True, kw_only=True)
class CostConfig(Section):
    """The cost model says what the simulated devices compute with; the host has its own dtype."""

    compute_bits: Literal[32, 16] = 32
    """The width of the operands of a device's matrix products."""
    attention: Attention = "eager"
    """The devices' implementation of attention."""
    lora_dropout: Annotated[float, Ge(0), Lt(1)] = 0.0
    """The dropout of adapters as it costs a device; the host trains without."""
    kind: Literal["closed_form", "measured"] = "closed_form"
    """Whether seconds follow from rates, or from a table of measured steps."""
    table: PathOrName | None = None
    """The file of measured steps, which ``fedclock calibrate`` writes."""
    model: PathOrName | None = None
    """A larger model whose costs are charged, while ``task.model`` is trained in its place."""
    revision: Revision | None = None
    """The commit, branch or tag of that model on the hub."""
    targets: Annotated[tuple[str, ...], MinLen(1)] | None = None
    """The layers adapted in that model; those of ``task.targets`` where left out."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.kind == "measured") != (self.table is not None):
            raise ValueError("give a table with kind measured, and none with closed_form")
        if self.model is None and (self.revision or self.targets):
            raise ValueError("revision and targets say more of cost.model, which is not given")
        if self.model and self.table:
            raise ValueError(
                "give a table or a model: measured steps are those of the model trained"
            )


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig(Section):
    """The global model is tested between rounds; that takes no simulated time."""

    every: Count = 1
    """The number of rounds from one test to the next."""
    examples: Count = 400
    """The number of test examples."""
    own_share: Annotated[float, Ge(0), Lt(1), LEFT_OUT] = 0.0
    """The share of its examples that each device keeps from training, to test the last model on."""


MAX_ROUNDS = 1_000_000
"""The most rounds that a run may have."""


@dataclass(frozen=True)
class Stop(Section):
    """A run ends after a number of rounds, or earlier at a time or a target."""

    rounds: Annotated[int, Ge(1), Le(MAX_ROUNDS)]
    """The most rounds."""
    simulated_s: Length | None = None
    """The simulated time after which no round begins."""
    target: Positive | None = None
    """The value of the task's first metric that ends the run."""


READ_ALONE = ("title", "strategy_title", "place", "targets")
"""The keys that only readers of a run use.

A finished run is not simulated again where they change: its manifest takes the values.
"""
NOT_SIMULATED = ("seed", "name", "label", *READ_ALONE)
"""Keys that the hash of a config leaves out: seed, names, and what only the analysis reads."""


@dataclass(frozen=True, kw_only=True)
class RunConfig(Section):
    """A run is of one strategy and one seed."""

    name: Name
    """The name of the experiment, and of the folder that its runs are in."""
    label: Name
    """The name of the run among those of the experiment; the strategy's kind unless given."""
    title: Title | None = None
    """The name of the experiment for readers, at the head of its page."""
    strategy_title: Title | None = None
    """The strategy's name in tables and figures; ``title`` in the strategy's own section is it."""
    place: tuple[int, ...] = ()
    """Where a run stands in tables and figures: its strategy's number, then its steps on each axis
    of a grid from the config's own value. FedClock fills it in."""
    seed: Annotated[int, Ge(0), Lt(2**63)] = 0
    """The seed that all random numbers follow from."""
    task: TaskConfig = TaskConfig()
    """What is fine-tuned on what."""
    shards: ShardsConfig = ShardsConfig()
    """How the training set is divided among the devices."""
    local: LocalWork = LocalWork(steps=10)
    """What a device does in a round."""
    training: TrainingOrNone = TrainingOptions()
    """How training is done; ``none`` simulates time alone, and nothing is learned."""
    fleet: Annotated[FleetConfig, BeforeValidator(without_empty_devices)]
    """The devices."""
    faults: FaultsConfig = FaultsConfig()
    """What goes wrong."""
    network: NetworkConfig = NetworkConfig()
    """What transfers share."""
    cost: CostConfig = CostConfig()
    """What the simulated devices compute with."""
    selection: Annotated[Selection, OneOf(SELECTIONS)] = Uniform()
    """Who takes part."""
    pacing: Annotated[Pacing, OneOf(PACINGS)]
    """When plans go out and when updates are merged."""
    aggregation: Robustness = Robustness()
    """What the server does with updates before the strategy aggregates."""
    server_optimizer: Annotated[ServerOptimizer, OneOf(SERVER_OPTIMIZERS)] | None = None
    """How the server steps along the mean of the strategy; it takes the mean itself if left out."""
    privacy: Privacy | None = None
    """The clipping and noise that make what devices learn differentially private."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """When the global model is tested."""
    stop: Stop
    """When the run ends."""
    targets: tuple[Positive, ...] = ()
    """The values of the task's first metric that runs are timed to; no run depends on them."""
    strategy: Annotated[Strategy[Any], OneOf(STRATEGIES)]
    """Who trains what, and how it is merged; with a `learning_rate` for its own runs alone."""

    def resolved(self) -> dict[str, Any]:
        """Return every key with its value as plain data: running it again gives the same run."""
        plain: dict[str, Any] = as_plain(self)
        return plain

    @property
    def hash(self) -> str:
        """Return eight hexadecimal digits that change with each key that decides a result.

        Only the seed is left out, although results follow from it.
        """
        plain = {k: v for k, v in self.resolved().items() if k not in NOT_SIMULATED}
        return hashlib.sha256(canonical(plain).encode()).hexdigest()[:8]

    @property
    def read_alone(self) -> dict[str, Any]:
        """Return the keys that only readers use, as plain data, without those that are None."""
        return {key: value for key, value in self.resolved().items() if key in READ_ALONE}

    @property
    def folder(self) -> Path:
        """Return the folder of the run, below the output folder."""
        return Path(self.name) / f"{self.label}-{self.hash}-s{self.seed}"


class RecordedStrategy(BaseModel):
    """A recorded strategy is that of a run folder as plain data: none of its code is imported."""

    model_config = ConfigDict(extra="allow", frozen=True)

    kind: str
    rank: Annotated[int, Ge(1), Le(1_000_000)]


def _with_strategy(strategy: Any) -> type[RunConfig]:
    """Return the config of a run whose strategy is of this type."""
    return make_dataclass(
        "RunConfig",
        [("strategy", strategy)],
        bases=(RunConfig,),
        frozen=True,
        kw_only=True,
        namespace={"__module__": __name__},
    )


RecordedConfig: type[RunConfig] = _with_strategy(RecordedStrategy)
"""The config of a run folder that is read, and not run."""


@cache
def config_for(own: type[Strategy[Any]]) -> type[RunConfig]:
    """Return the config of runs whose strategy is this class of the user's, held to its fields.

    Raises PydanticUserError or NameError where the type of a field cannot be checked.
    """
    own_config = _with_strategy(
        Annotated[Strategy[Any], OneOf({own.kind: own}), AfterValidator(check_scale)]
    )
    get_type_hints(own)  # raises where a name in an annotation is unknown
    adapter(own_config)
    return own_config


def read_section(section: type[T], content: Any, *, folder: Path = Path()) -> T:
    """Return a section of a config from plain data, whose relative paths start at ``folder``.

    Raises pydantic's ValidationError.
    """
    read: T = adapter(section).validate_python(content, context=folder)
    return read


def section_json(section: object, exclude: Collection[str] = ()) -> str:
    """Return a section as JSON, without some of its keys. Seeds and hashes are taken of it."""
    text: bytes = adapter(type(section)).dump_json(section, exclude=set(exclude))
    return text.decode()
