"""Counts what the optimizer of a training step holds and moves, in closed form.

All of its numbers are fp32. Tests compare the state to the byte with torch's own optimizers, and
the accesses with what torch's dispatcher sees.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from devices.models.spec import ModelSpec
from devices.options import OptimizerName, TrainingOptions
from devices.vocabulary.number_formats import FP32_BYTES
from devices.vocabulary.plan import TermGrid

ADAFACTOR_ACCESSES = 17
"""Reads and writes by Adafactor for each trained parameter, operator by operator.

The norm of the parameter reads it, and the means over rows and columns read the gradient twice.
Their product writes the estimate of the variance; dividing, clamping and inverting its root read
and write it; the product with the gradient reads two and writes one; its norm reads it, and the
step reads two and writes one.
"""


@dataclass(frozen=True)
class OptimizerCost:
    """The cost of an optimizer follows from its name and those options that add to its work."""

    name: OptimizerName = "adamw"
    has_momentum: bool = False  # True for SGD with momentum
    has_decay: bool = True
    clips: bool = False

    @classmethod
    def of(cls, options: TrainingOptions) -> OptimizerCost:
        """Return the cost of the optimizer that these options name."""
        return cls(
            name=options.optimizer,
            has_momentum=options.sgd_momentum > 0,
            has_decay=options.weight_decay > 0,
            clips=options.clip_norm is not None,
        )

    def state_bytes(self, model: ModelSpec, terms: TermGrid) -> int:
        """Return the bytes of the optimizer's state for all that a device trains.

        AdamW has two moments of each parameter, and SGD a velocity if it has momentum. Adafactor
        has one number for each row and column of a matrix, and one for each element of a vector
        (Shazeer and Stern, "Adafactor", arXiv 1804.04235, section 3; without momentum).
        """
        match self.name:
            case "sgd":
                numbers = self.has_momentum * model.trained_parameters(terms)
            case "adafactor":
                numbers = sum(_factored(shape) for shape in trained_shapes(model, terms))
            case _:
                numbers = 2 * model.trained_parameters(terms)
        return FP32_BYTES * numbers

    @property
    def accesses(self) -> int:
        """Return the reads and writes of fp32 values for each trained parameter in one step.

        AdamW and SGD run in one kernel: they read the parameter, its gradient and its state, and
        write the parameter and its state. Clipping reads the gradient for its norm, and reads and
        writes it to scale it.
        """
        match self.name:
            case "sgd":
                own = 3 + 2 * self.has_momentum
            case "adafactor":
                own = ADAFACTOR_ACCESSES + 2 * self.has_decay
            case _:
                own = 7
        return own + 3 * self.clips


ADAMW = OptimizerCost()
"""The optimizer of a run that names none."""


def trained_shapes(model: ModelSpec, terms: TermGrid) -> Iterator[tuple[int, ...]]:
    """Yield the shape of each tensor that a device trains: parts of A and of B, and the head."""
    yield from model.head_shapes.values()
    for counts in terms.trained.sum(axis=2).tolist():
        for num_terms, layer in zip(counts, model.targets, strict=True):
            if num_terms:
                for name in terms.trained_factors:
                    yield num_terms, layer.factor_width(name)


def _factored(shape: tuple[int, ...]) -> int:
    return math.prod(shape) if len(shape) == 1 else sum(shape)
