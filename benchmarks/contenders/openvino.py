"""OpenVINO: the traced graph in bf16, or in static int8 by NNCF with the remaining operators in bf16."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from benchmarks.contenders.engine import (
    MAX_TOKENS,
    Array,
    Batched,
    Engine,
    Ids,
    Opening,
    Request,
    pad_id_of,
    padded,
)
from benchmarks.contenders.onnxruntime import EMBEDDING, GRAPH

BATCHES: Sequence[int] = (256, 512, 1024, 2048)
"""Tokens with padding per batch."""
_IR = "model.xml"


def load() -> Mapping[str, str]:
    """Import the library and return its versions."""
    import openvino

    return {"openvino": openvino.__version__}


def open_engine(opening: Opening) -> Engine:
    """Compile for latency, with bf16 for operators that are not int8."""
    import openvino

    hints = {
        "INFERENCE_PRECISION_HINT": opening.options["hint"],
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": opening.threads,
    }
    compiled = openvino.Core().compile_model(opening.files / _IR, "CPU", hints)
    request = compiled.create_infer_request()
    pad_id = pad_id_of(opening.checkpoint)

    def run(ids: Ids) -> Array:
        input_ids, mask = padded(ids, pad_id)
        found = request.infer({"input_ids": input_ids, "attention_mask": mask}, share_inputs=True)
        return np.array(found[0], np.float32)

    return Batched(opening.checkpoint / "tokenizer.json", opening.batch or 1024, run)


def prepare(request: Request) -> None:
    """Convert the traced graph ("openvino-fp32"), or quantize the converted graph ("openvino-int8")."""
    import openvino

    if request.kind == "openvino-fp32":
        graph = openvino.convert_model(request.source / GRAPH, output=EMBEDDING)
    else:
        graph = _quantized(request)
    openvino.save_model(graph, request.out / _IR, compress_to_fp16=False)


def _quantized(request: Request) -> object:
    """Quantize to static int8, including SmoothQuant, with NNCF's preset for transformers."""
    os.environ.setdefault("NNCF_CI", "1")  # disables telemetry
    import nncf
    import openvino

    return nncf.quantize(
        openvino.Core().read_model(request.source / _IR),
        nncf.Dataset(list(_calibration(request))),
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(request.texts),
    )


def _calibration(request: Request) -> Iterator[dict[str, object]]:
    from koe5_onnx import Tokenizer

    tokenizer = Tokenizer(request.source / "tokenizer.json", MAX_TOKENS)
    for ids in tokenizer.encode(request.texts).ids:
        input_ids, mask = padded([ids], pad_id=0)
        yield {"input_ids": input_ids, "attention_mask": mask}
