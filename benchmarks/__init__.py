"""Benchmarks of koe5-onnx and of comparable systems: `python -m benchmarks NAME`."""
