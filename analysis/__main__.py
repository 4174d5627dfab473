"""``python -m analysis`` is the command ``fedclock``."""

from analysis.commands.entry import main

main()
