"""Measurements against a floor in the same run: `python -m benchmarks` lists them, docs/benchmarks.md explains them."""
