"""Lists the parameters of access technologies as Markov-modulated links, each with its source."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class State:
    """A state is one condition of a link; one with ``level`` 0 is an outage."""

    share: float  # share of time in this state in the long run
    dwell_s: float  # mean time until the next state is drawn; a state may follow itself
    level: float  # rate relative to that of the other states; only ratios matter


@dataclass(frozen=True)
class Technology:
    """A technology is a Markov-modulated link: states, and log-normal scatter within each."""

    down_mbps: float  # mean over time and over the links of a pool
    up_mbps: float
    link_sigma: float  # log-normal spread of that mean between the links of a pool
    scatter: float  # log-normal spread of the rate from step to step within a state
    states: tuple[State, ...]
    source: str

    @property
    def outage_share(self) -> float:
        """Return the share of time in which the link is down."""
        return sum(state.share for state in self.states if state.level == 0)


_MBE = (
    "the speed tests of Mobile Bandwidth Evolution (China, 2023, about 1,000 of each kind; its "
    "repository)"
)
_WIFI_REST = "the uplink is the same multiple of the downlink as of wifi, and so is the variation"

# Levels, dwell times and scatter are our reconstruction throughout. They bring the coefficient of
# variation of a single link near that of the recordings named (0.4 WiFi, 0.6 LTE at rest, 0.7 in
# a car, 1.1 5G), and the correlation of rates 5 s apart on mobile links near 0.4.
TECHNOLOGIES: Mapping[str, Technology] = MappingProxyType(
    {
        "wifi": Technology(
            down_mbps=48.0,
            up_mbps=30.0,
            link_sigma=0.48,
            scatter=0.3,
            states=(State(0.2, 30, 0.5), State(0.8, 30, 1.15)),
            source="mean, spread between links and variation of the 19 phones measured for FLASH "
            "(Yang et al., WWW 2021; user network speeds in its repository)",
        ),
        "wifi4": Technology(
            down_mbps=65.0,
            up_mbps=40.6,
            link_sigma=0.89,
            scatter=0.3,
            states=(State(0.2, 30, 0.5), State(0.8, 30, 1.15)),
            source=f"mean, and spread by mean over median, of {_MBE}, Wi-Fi 4; {_WIFI_REST}",
        ),
        "wifi5": Technology(
            down_mbps=252.0,
            up_mbps=157.5,
            link_sigma=0.65,
            scatter=0.3,
            states=(State(0.2, 30, 0.5), State(0.8, 30, 1.15)),
            source=f"mean, and spread by mean over median, of {_MBE}, Wi-Fi 5; {_WIFI_REST}",
        ),
        "wifi6": Technology(
            down_mbps=450.0,
            up_mbps=281.0,
            link_sigma=0.46,
            scatter=0.3,
            states=(State(0.2, 30, 0.5), State(0.8, 30, 1.15)),
            source=f"mean, and spread by mean over median, of {_MBE}, Wi-Fi 6; {_WIFI_REST}",
        ),
        "fixed": Technology(
            down_mbps=130.0,
            up_mbps=39.0,
            link_sigma=0.9,
            scatter=0.1,
            states=(State(0.05, 60, 0.5), State(0.95, 60, 1.03)),
            source="mean of the US Speedtests of 2020 (Benton Institute on Ookla open data); the "
            "spread makes the median 86 Mbit/s (Ookla, US fixed, second quarter of 2020)",
        ),
        "lte": Technology(
            down_mbps=27.3,
            up_mbps=8.6,
            link_sigma=0.61,
            scatter=0.35,
            states=(State(0.3, 5, 0.5), State(0.4, 5, 1.0), State(0.3, 5, 1.7)),
            source="mean of US mobile Speedtests in the first half of 2018 (Ookla); the spread is "
            "that of 4G speed tests in 2023 (Mobile Bandwidth Evolution: mean 61, median 51)",
        ),
        "lte-driving": Technology(
            down_mbps=7.7,
            up_mbps=1.05,
            link_sigma=0.56,
            scatter=0.35,
            states=(
                State(0.022, 4.2, 0.0),
                State(0.3, 8, 0.35),
                State(0.4, 8, 1.0),
                State(0.278, 8, 2.0),
            ),
            source="means, outages and spread of the three LTE drives recorded with mahimahi "
            "(Winstein et al., NSDI 2013; Netravali et al., ATC 2015), pooled over 1,380 s down "
            "and 906 s up; an outage is a second below 1 % of the mean",
        ),
        "lte-walking": Technology(
            down_mbps=27.3,
            up_mbps=8.6,
            link_sigma=0.61,
            scatter=0.35,
            states=(State(0.3, 20, 0.4), State(0.4, 20, 1.0), State(0.3, 20, 1.6)),
            source="means and spread as lte; no published figures on foot were at hand, so that "
            "the conditions of lte hold for as long as a walk of 25 to 30 m takes, and differ a "
            "little more, is our reconstruction",
        ),
        "5g": Technology(
            down_mbps=70.3,
            up_mbps=8.9,
            link_sigma=0.39,
            scatter=0.3,
            states=(
                State(0.087, 2.0, 0.0),
                State(0.413, 6, 0.3),
                State(0.3, 6, 1.0),
                State(0.2, 6, 3.2),
            ),
            source="downlink mean, outages and spread of the five static 5G downloads of UCC "
            "(Raca et al., MMSys 2020), pooled over 17,151 s; the uplink is 0.127 of that, as in "
            "the world's 5G Speedtests in the third quarter of 2021 (Ookla: 21.08 of 166.13)",
        ),
        "3g": Technology(
            down_mbps=2.0,
            up_mbps=0.94,
            link_sigma=0.5,
            scatter=0.3,
            states=(
                State(0.051, 2.0, 0.0),
                State(0.3, 8, 0.35),
                State(0.37, 8, 1.0),
                State(0.279, 8, 2.0),
            ),
            source="means and outages of the UMTS drive recorded with mahimahi (as lte-driving), "
            "928 s; the spread between links is our choice",
        ),
    }
)
