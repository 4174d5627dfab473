"""``python -m analysis`` is the command ``fedclock``."""

from analysis.commands.main import main

main()
