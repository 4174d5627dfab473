"""Holds the bundled data sets, the scripts that made them, and readers of a user's own files."""
