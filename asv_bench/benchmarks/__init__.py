"""Benchmarks for asv: one file for each kind of work, ``common.py`` for what they share."""
