"""Makes what devices learn differentially private: the server clips each change and adds noise.

McMahan, Ramage, Talwar, Zhang: "Learning Differentially Private Recurrent Language Models", ICLR
2018, arXiv 1710.06963: DP-FedAvg with a fixed denominator, whose unit of privacy is all that one
device holds. With n devices asked in a round, C the norm that a change is clipped to, z the noise
multiplier and d_k the clipped change of device k,

    x  <-  x + (sum_k d_k + N(0, (z C)^2 I)) / n

Devices count alike, and one whose update is missing counts as zero. The noise is central: the
server is trusted to add it.

What is assumed: in each round n of the N devices are drawn uniformly, without replacement and
whatever the rounds before have learned. Replacing one device's data moves the sum by at most 2 C,
so that the noise is z / 2 times the sensitivity. The budget is that of the Rényi accountant of
Wang, Balle, Kasiviswanathan, "Subsampled Rényi Differential Privacy and Analytical Moments
Accountant", AISTATS 2019, arXiv 1808.00087, as Google's dp-accounting has it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

import numpy as np
from annotated_types import Gt, Lt

from algorithms.merging.robust import clipped
from algorithms.merging.wrapped import Wrapped
from algorithms.strategy import ServerState
from devices.vocabulary.plan import Adapter, ClientUpdate, Factors, TermGrid, TrainingPlan
from traces.arrays import Float32Array
from traces.options import Options, Positive

ORDERS = (*(1 + k / 10 for k in range(1, 100)), *range(11, 64), 80, 96, 128, 192, 256, 384, 512)
"""Orders of the Rényi divergence of which the accountant takes the best."""


@dataclass(frozen=True)
class Privacy(Options):
    """The server clips each device's change and adds Gaussian noise to their sum."""

    clip_norm: Positive
    """The L2 norm, over factors and head, to which a device's change is scaled down."""
    noise_multiplier: Positive
    """The standard deviation of the noise on the sum, as a multiple of ``clip_norm``."""
    delta: Annotated[float, Gt(0), Lt(1)] = 1e-5
    """The chance with which the guarantee may fail, for which epsilon is told."""

    def epsilon(self, *, num_devices: int, cohort: int, rounds: int) -> float:
        """Return the epsilon, at ``delta``, of rounds that draw ``cohort`` of ``num_devices``.

        Raises ImportError where the library of the extra ``privacy`` is missing.
        """
        from dp_accounting import dp_event, privacy_accountant
        from dp_accounting.rdp import RdpAccountant

        if not rounds:
            return 0.0
        # The multiplier is relative to the sensitivity: replacing one device's data can move the
        # sum by 2 clip_norm.
        noise = dp_event.GaussianDpEvent(self.noise_multiplier / 2)
        drawn = noise
        if cohort < num_devices:
            drawn = dp_event.SampledWithoutReplacementDpEvent(num_devices, cohort, noise)
        relation = privacy_accountant.NeighboringRelation.REPLACE_ONE
        accountant = RdpAccountant(ORDERS, relation)
        accountant.compose(drawn, rounds)
        return float(accountant.get_epsilon(self.delta))


@dataclass(frozen=True)
class WithPrivacy(Wrapped[Any]):
    """This strategy is another one whose updates are clipped, counted alike and merged with noise.

    ``strategy`` takes means, remembers nothing, and lets all devices of a round send the same
    terms; ``cohort`` is the number of devices that a round asks, and ``noise_seed`` that of the
    noise, which is drawn anew for each version.
    """

    kind: ClassVar[str] = "with-privacy"
    title: ClassVar[str] = "A strategy with differential privacy"
    is_mean: ClassVar[bool] = True

    privacy: Privacy
    cohort: int
    noise_seed: int

    def aggregate(
        self, state: ServerState[Any], updates: Sequence[ClientUpdate]
    ) -> ServerState[Any]:
        norm = self.privacy.clip_norm
        alike = [replace(clipped(update, norm), num_examples=1) for update in updates]
        after = self.strategy.aggregate(state, alike)
        rng = np.random.default_rng((self.noise_seed, state.version))
        return replace(
            after,
            adapter=noised(
                state.adapter,
                after.adapter,
                updates[0].plan.terms,
                share=len(updates) / self.cohort,
                deviation=self.privacy.noise_multiplier * norm / self.cohort,
                rng=rng,
            ),
        )


def noised(
    before: Adapter,
    after: Adapter,
    terms: TermGrid,
    *,
    share: float,
    deviation: float,
    rng: np.random.Generator,
) -> Adapter:
    """Return ``before`` with a share of the change to ``after``, and noise on all that was sent."""

    def moved(old: Float32Array, new: Float32Array, sent: Any) -> Float32Array:
        noise = rng.normal(0.0, deviation, old.shape)
        change = share * (new.astype(np.float64) - old) + noise
        return np.where(sent, old + change, old).astype(np.float32)

    factors = {}
    for key, (a, b) in before.factors.items():
        sent = terms.uploaded[key.block, before.modules.index(key.module)]  # (R,)
        of_a, of_b = (sent & (name in terms.uploaded_factors) for name in ("a", "b"))
        end = after.factors[key]
        factors[key] = Factors(moved(a, end.a, of_a[:, None]), moved(b, end.b, of_b))
    head = {name: moved(old, after.head[name], True) for name, old in before.head.items()}
    return replace(after, factors=factors, head=head)


def sends_alike(plans: Sequence[TrainingPlan]) -> bool:
    """Return whether all plans upload the same terms, so that their sum has one sensitivity."""
    first = plans[0].terms
    return all(
        plan.terms.use == first.use and np.array_equal(plan.terms.uploaded, first.uploaded)
        for plan in plans
    )
