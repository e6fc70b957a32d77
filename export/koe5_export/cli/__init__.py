"""The verbs of the command koe5-onnx that make and measure artifacts; koe5_onnx.cli adds them to its own."""

from koe5_export.cli import demo, export, import_onnx, verify

VERBS = (demo, export, import_onnx, verify)
