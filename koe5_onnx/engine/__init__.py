"""From token ids to embeddings: batches, sessions of ONNX Runtime, and the queue of concurrent calls."""
