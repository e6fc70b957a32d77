"""Inference: batches, ONNX Runtime sessions and the queue of concurrent calls."""
