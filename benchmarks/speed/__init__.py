"""Speed benchmarks: throughput, latency, memory and cold start, with one module per measurement."""
