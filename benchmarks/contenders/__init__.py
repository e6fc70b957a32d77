"""Contenders, the systems that the benchmarks compare: one module per library, one process per contender."""
