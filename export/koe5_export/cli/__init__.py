"""Commands of koe5-onnx that create and measure artifacts; koe5_onnx.cli adds them to its own commands."""

from koe5_export.cli import demo, export, import_onnx, verify

VERBS = (demo, export, import_onnx, verify)
