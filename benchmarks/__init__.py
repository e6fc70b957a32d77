"""Measurements of koe5-onnx and of what else does its job: `python -m benchmarks NAME`."""
