"""Defines the keys of the task and its data: what is learned, and which device holds what of it."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Annotated, Any, Literal

from annotated_types import Ge, Le, MaxLen, MinLen

from devices.datasets.dataset import CLIENT, Edition
from simulator.config.types import Count, DataPart, PathOrName, Revision, Section
from traces.options import LEFT_OUT, Positive, Rule

TaskName = Literal["classification", "regression", "causal-lm", "instructions", "choice"]
Template = Rule(
    lambda text: text == "chat" or (text.count("{prompt}") == 1 and len(text) <= 2000),
    "chat, or a text of at most 2000 characters with {prompt} in it once",
)


@dataclass(frozen=True, kw_only=True)
class TaskConfig(Section):
    """The task says what is fine-tuned on what, and to do what."""

    kind: TaskName = "classification"
    """What the model learns: a label or score of texts, the tokens that follow, or an answer."""
    model: PathOrName = "minilm-l6"
    """The name of a model, a repository of the hub, or a model directory."""
    revision: Revision | None = None
    """The commit, branch or tag of a model on the hub."""
    targets: Annotated[tuple[str, ...], MinLen(1)] = ("query", "value")
    """The layers of a block that are adapted."""
    data: PathOrName = "wordnet-16"
    """The name of a data set, a folder, or ``owner/name`` on the hub."""
    data_config: DataPart | None = None
    """The configuration of a data set on the hub; its default one if left out."""
    data_revision: Revision | None = None
    """The commit, branch or tag of a data set on the hub."""
    train_split: Annotated[DataPart, LEFT_OUT] = "train"
    """What a folder or a data set on the hub calls the examples to train on."""
    test_split: Annotated[DataPart, LEFT_OUT] = "test"
    """What a folder or a data set on the hub calls the examples to test on."""
    columns: Annotated[dict[str, str], MaxLen(16)] = field(default_factory=dict)
    """The data's own names of columns, as in ``{text: body}``."""
    max_length: Annotated[int, Ge(4), Le(512)] = 32
    """The tokens to which a device pads every example; longer texts are cut."""
    template: Annotated[str, Template, LEFT_OUT] = "{prompt}\n"
    """How a prompt stands before its answer: a text with ``{prompt}``, or ``chat``."""
    packing: Annotated[Literal["by-document", "packed"], LEFT_OUT] = "by-document"
    """Whether each text of a causal-lm is learned alone, or a device's texts are joined and cut."""
    answer_tokens: Annotated[int, Ge(0), Le(512), LEFT_OUT] = 32
    """The most tokens of an answer that the model gives in an evaluation; 0 asks for none."""

    @property
    def edition(self) -> Edition:
        """Return which part of the data is read, and at which revision."""
        return Edition(self.data_config, self.data_revision, self.train_split, self.test_split)

    @property
    def options(self) -> dict[str, Any]:
        """Return the keys that not all tasks have, where they are not at their default."""
        keys = ("template", "packing", "answer_tokens")
        defaults = {f.name: f.default for f in fields(self) if f.name in keys}
        return {k: getattr(self, k) for k in keys if getattr(self, k) != defaults[k]}


@dataclass(frozen=True, kw_only=True)
class ShardsConfig(Section):
    """Shards are how the training set is divided among the devices."""

    kind: Literal["dirichlet", "iid", "drawn", "natural", "few-groups", "log-normal", "sizes"] = (
        "dirichlet"
    )
    """Skewed groups, even parts, draws, a client each, few groups each, skewed or given sizes."""
    group_by: Annotated[str, MinLen(1), MaxLen(64)] | None = None
    """The column whose values are the groups that shards are skewed by, not the task's own."""
    per_device: Annotated[int, Ge(1), Le(1_000_000), LEFT_OUT] = 2
    """The groups of each device, where it has few."""
    sigma: Annotated[float, Ge(0), Le(10), LEFT_OUT] = 1.0
    """The standard deviation of the logarithm of a device's share, where sizes are log-normal."""
    sizes: Annotated[tuple[Count, ...], MaxLen(1_000_000), LEFT_OUT] = ()
    """The number of examples of each device, where sizes are given."""
    column: Annotated[str, MinLen(1), MaxLen(64)] = CLIENT
    """The column that names the client of a text, where shards are natural."""
    alpha: Positive = 0.5
    """The parameter of the Dirichlet distribution over groups; a small one is more skewed."""
    min_examples: Count = 16
    """The least examples of a device."""
    examples: Annotated[int, Ge(1), Le(1_000_000)] = 64
    """The examples that each device draws, with replacement, where they are drawn."""
