"""Makes this package a benchmark as FLGo wants one, with a module ``core``."""
