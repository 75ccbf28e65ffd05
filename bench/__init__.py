"""Benchmarks: each measures, prints a table, and writes JSON with `--json`."""
