"""Benchmarks: each module prints one table, and compares within one run, since machines differ and are noisy."""
