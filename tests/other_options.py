"""A value different from the default for each field of EngineOptions."""

OTHER = {
    "revision": "main",
    "device": "cuda:1",
    "threads": 3,
    "parallel_batches": 2,
    "max_batch_tokens": 100,
    "overflow": "error",
    "graph": "packed",
    "gpu_mem_limit": 1000,
    "share_weights": True,
    "cuda_graphs": True,
    "selftest": True,
}
