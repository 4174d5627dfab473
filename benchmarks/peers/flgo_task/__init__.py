"""A benchmark as FLGo wants one: a package with ``core``."""
