"""Runs the command ``fedclock`` as ``python -m analysis``."""

from analysis.commands.entry import main

main()
