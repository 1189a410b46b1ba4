"""Benchmarks, and the records they leave in benchmarks/results."""
