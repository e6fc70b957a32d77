"""ONNX Runtime as Optimum and sentence-transformers use it: a traced fp32 graph, dynamic int8, or fp16.

OpenVINO and fastembed also start from the traced graph.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.contenders.engine import Array, Batched, Engine, Ids, Opening, Request, pad_id_of, padded

BATCHES: Sequence[int] = (256, 512, 1024, 2048)
"""Tokens with padding per batch."""
GRAPH = "model.onnx"
HIDDEN, EMBEDDING = "last_hidden_state", "sentence_embedding"
"""Output names of the traced graph, the same as Optimum's."""
_OPSET = 17


def load() -> Mapping[str, str]:
    """Import the library and return its versions."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    return {"onnxruntime": onnxruntime.__version__}


def open_engine(opening: Opening) -> Engine:
    """Open a prepared graph with ONNX Runtime's defaults, except for threads, logging and the device."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = opening.threads
    options.log_severity_level = 3
    provider = _provider(opening.options.get("device", "cpu"))
    session = onnxruntime.InferenceSession(
        str(opening.files / GRAPH), options, providers=[provider], enable_fallback=0
    )
    if session.get_providers()[0] != provider[0]:
        raise RuntimeError(f"ONNX Runtime selected {session.get_providers()}, expected {provider[0]}")
    pad_id = pad_id_of(opening.checkpoint)

    def run(ids: Ids) -> Array:
        input_ids, mask = padded(ids, pad_id)
        found: Array = session.run([EMBEDDING], {"input_ids": input_ids, "attention_mask": mask})[0]
        return found

    return Batched(opening.checkpoint / "tokenizer.json", opening.batch or 1024, run)


def _provider(device: str) -> tuple[str, dict[str, str]]:
    """Return the name and options of a device's provider. Only the device id is not CUDA's default."""
    if device == "cpu":
        return "CPUExecutionProvider", {}
    import onnxruntime

    onnxruntime.preload_dlls()
    return "CUDAExecutionProvider", {"device_id": device.partition(":")[2] or "0"}


def prepare(request: Request) -> None:
    """Trace a checkpoint ("onnx"), or convert the trace to int8 ("ort-dynamic-int8") or fp16 ("ort-fp16")."""
    if request.kind == "onnx":
        _trace(request.source, request.out)
    elif request.kind == "ort-fp16":
        _narrow(request.source, request.out)
    else:
        _quantize(request.source / GRAPH, request.out / GRAPH)


def _trace(checkpoint: Path, out: Path) -> None:
    """Export with torch.onnx, including pooling and normalization. Write all weights to one external file."""
    import onnx
    import torch
    import transformers

    encoder = transformers.AutoModel.from_pretrained(
        checkpoint, dtype=torch.float32, attn_implementation="eager", local_files_only=True
    )
    loose = out / "loose"
    loose.mkdir()
    names = ["input_ids", "attention_mask"]
    ids = torch.tensor([[0, 5, 6, 2], [0, 7, 2, 1]])
    batch = {name: {0: "rows", 1: "width"} for name in (*names, HIDDEN)} | {EMBEDDING: {0: "rows"}}
    with torch.inference_mode():
        torch.onnx.export(
            _pooled(encoder),
            (ids, (ids != 1).long()),
            str(loose / GRAPH),
            input_names=names,
            output_names=[HIDDEN, EMBEDDING],
            dynamic_axes=batch,
            opset_version=_OPSET,
            do_constant_folding=True,
            dynamo=False,
        )
    del encoder
    graph = onnx.load(str(loose / GRAPH))
    onnx.save_model(graph, str(out / GRAPH), save_as_external_data=True, location=f"{GRAPH}.data")
    for file in loose.iterdir():
        file.unlink()
    loose.rmdir()


def _pooled(encoder: Any) -> Any:
    """Return the encoder with mean pooling and normalization, as Optimum exports a sentence encoder."""
    import torch

    class Pooled(torch.nn.Module):  # type: ignore[misc, unused-ignore]
        def __init__(self) -> None:
            super().__init__()
            self.encoder = encoder.eval()

        def forward(self, input_ids: Any, attention_mask: Any) -> tuple[Any, Any]:
            hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
            kept = attention_mask.unsqueeze(-1).to(hidden.dtype)
            mean = (hidden * kept).sum(1) / kept.sum(1).clamp(min=1e-9)
            return hidden, torch.nn.functional.normalize(mean, dim=1)

    return Pooled()


def _quantize(graph: Path, out: Path) -> None:
    """Quantize like Optimum's `AutoQuantizationConfig.avx512_vnni(is_static=False)`: MatMul, per channel.

    Products of two activations stay in fp32, as is the default of `quantize_dynamic`.
    Source: https://github.com/huggingface/optimum-onnx/blob/main/optimum/onnxruntime/configuration.py
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(
        str(graph),
        str(out),
        op_types_to_quantize=["MatMul"],
        per_channel=True,
        reduce_range=False,
        weight_type=QuantType.QInt8,
        use_external_data_format=True,
        extra_options={"WeightSymmetric": True, "ActivationSymmetric": False},
    )


def _narrow(source: Path, out: Path) -> None:
    """Fuse and convert to fp16 like Optimum's O4: transformer fusions, approximate GELU, fp32 outputs.

    ONNX Runtime applies O4's remaining fusions (level 2) when the session opens.
    Source: https://github.com/huggingface/optimum-onnx/blob/main/optimum/onnxruntime/configuration.py
    """
    import json

    from onnxruntime.transformers.fusion_options import FusionOptions
    from onnxruntime.transformers.optimizer import optimize_model

    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    options = FusionOptions("bert")
    options.enable_gelu_approximation = True
    optimized = optimize_model(
        str(source / GRAPH),
        model_type="bert",
        num_heads=config["num_attention_heads"],
        hidden_size=config["hidden_size"],
        optimization_options=options,
        opt_level=0,
    )
    optimized.convert_float_to_float16(keep_io_types=True)
    optimized.save_model_to_file(str(out / GRAPH), use_external_data_format=True)
