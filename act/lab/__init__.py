"""A laboratory: a small trained model, a specialist that has forgotten most of what it knew, and their language.

Only the demo, experiments, benchmarks and tests use it.
"""
