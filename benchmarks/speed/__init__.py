"""Speed benchmarks, with one module per measurement."""
