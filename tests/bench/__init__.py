"""Benchmarks: `python -m tests.bench.NAME` shows progress and ends with one JSON object."""
