"""Bundled data sets, the scripts that made them, and the reader of a user's own files."""
