"""``python -m simulator`` is the command ``fedclock``."""

from simulator.cli import main

main()
