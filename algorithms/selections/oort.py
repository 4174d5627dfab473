"""Oort picks devices from which much can be learned, unless they are too slow for it.

Lai, Zhu, Madhyastha, Chowdhury: "Oort: Efficient Federated Learning via Guided Participant
Selection", OSDI 2021, arXiv 2010.06081.

Utility of device i in round R, last picked in round L_i, with losses over its |B_i| examples:

    U_i = |B_i| sqrt(mean loss^2), clipped, and scaled to [0, 1] over the idle devices
    score = (U_i + sqrt(0.1 ln R / L_i)) (T / t_i)^penalty     the last factor where t_i > T only

T, the preferred round trip, is a percentile of the round trips seen; the pacer moves it. A share of
the cohort is drawn by score from those above a cut-off, the rest from devices never picked.

The numbers are those of the authors' public code, and so are the rule of the pacer and the draw of
new devices by their examples. Ours: B_i is the whole shard, of whose losses those of the examples
that were trained on are the sample; a fraction of a slot to explore with counts as a chance; a
device that was picked and never heard of has no utility. Not here: leaving out devices that were
picked too often. Where nothing is trained, U is 0 for all, and round trips and staleness decide.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import numpy as np

from algorithms.selection import Roster, draw_weighted
from devices.vocabulary.plan import DeviceId
from traces.arrays import FloatArray, IntArray
from traces.options import Count, NotNegative, Options, PartialShare, Share

PACER_FLAT, PACER_SHARP = 0.1, 5.0
"""Relative changes of the utility of a window of rounds, at most and at least, that move T."""


@dataclass(frozen=True)
class Oort(Options):
    """Oort picks high losses on quick devices, and a decaying share of devices never picked.

    Every ``pacer_rounds`` the pacer widens ``preferred_share`` by ``pacer_step`` where the utility
    of the rounds has come to a halt, and narrows it where it jumped.
    """

    kind: ClassVar[str] = "oort"

    explore_share: Share = 0.9
    """The share of the first cohort that is drawn from devices never picked before."""
    explore_decay: PartialShare = 0.95
    """The factor on that share from one round to the next."""
    least_explore_share: Share = 0.2
    """The share of devices never picked below which it does not decay."""
    preferred_share: PartialShare = 0.1
    """The share of devices no slower than the preferred round trip."""
    pacer_rounds: Count = 20
    """The number of rounds after which the pacer looks at the utility again."""
    pacer_step: Share = 0.05
    """The change of ``preferred_share`` by the pacer."""
    penalty: NotNegative = 2.0
    """The exponent by which a device slower than preferred loses score."""
    clip: PartialShare = 0.98
    """The quantile of utilities to which larger ones are cut."""
    cut_off: Share = 0.7
    """The least score, over that of the last device in the best cohort, that may be drawn."""

    def pick(
        self, idle: IntArray, slots: int, *, roster: Roster, rng: np.random.Generator
    ) -> tuple[DeviceId, ...]:
        """Return as many devices as there are slots, or all; however many of them are new."""
        rows = roster.rows(idle)
        is_new = roster.times_picked[rows] == 0
        new, old = rows[is_new], rows[~is_new]
        slots = min(slots, len(rows))
        wanted = math.floor(slots * self._explore_share(roster.round) + rng.random())
        num_new = min(max(wanted, slots - len(old)), len(new))
        explored = draw_weighted(new, roster.num_examples[new], num_new, rng=rng)
        exploited = self._exploited(roster, old, slots - num_new, rng=rng)
        return roster.named(np.concatenate([explored, exploited]))

    def _explore_share(self, round_number: int) -> float:
        decayed = self.explore_share * self.explore_decay ** (round_number - 1)
        return max(decayed, min(self.least_explore_share, self.explore_share))

    def _exploited(
        self, roster: Roster, old: IntArray, count: int, *, rng: np.random.Generator
    ) -> IntArray:
        """Return ``count`` rows, drawn by score from the best and those not far below."""
        if count in (0, len(old)):
            return old[:count]
        score = self.scores(roster, old)
        worst_of_best = np.partition(score, len(score) - count)[len(score) - count]
        good = score >= self.cut_off * worst_of_best
        return draw_weighted(old[good], score[good], count, rng=rng)

    def scores(self, roster: Roster, rows: IntArray) -> FloatArray:
        """Return (len(rows),): the scores of devices that have been picked before."""
        utility = roster.num_examples[rows] * np.sqrt(np.nan_to_num(roster.squared_loss[rows]))
        most = np.sort(utility)[min(int(self.clip * len(utility)), len(utility) - 1)]
        least = utility.min()
        scaled = (np.minimum(utility, most) - least) / ((most - least) or 1.0)
        stale = np.sqrt(0.1 * math.log(roster.round) / roster.last_round[rows])
        trip_s, preferred_s = np.nan_to_num(roster.trip_s[rows]), self.preferred_s(roster)
        slowness = np.maximum(trip_s / preferred_s, 1.0)
        score: FloatArray = (scaled + stale) * slowness**-self.penalty
        return score

    def preferred_s(self, roster: Roster) -> float:
        """Return T, the seconds that a round trip may take without a penalty."""
        seen_s = np.sort(roster.trip_s[np.isfinite(roster.trip_s)])
        share = self._preferred_share(roster.utility)
        place = int(share * len(seen_s))
        return math.inf if share >= 1 or not len(seen_s) else float(seen_s[place])

    def _preferred_share(self, utility: FloatArray) -> float:
        """Return the preferred share that the pacer has come to after these rounds."""
        share, length = self.preferred_share, self.pacer_rounds
        windows = utility[: len(utility) // length * length].reshape(-1, length).sum(axis=1)
        for before, now in pairwise(windows):
            if abs(now - before) <= PACER_FLAT * before and before > 0:
                share = min(1.0, share + self.pacer_step)
            elif abs(now - before) >= PACER_SHARP * before > 0:
                share = max(self.pacer_step, share - self.pacer_step)
        return share
