"""Benchmarks: qsession beside what people use instead, each comparison in one file."""
