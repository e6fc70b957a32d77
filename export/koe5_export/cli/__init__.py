"""Commands that create, measure and publish artifacts; koe5_onnx.cli adds them to its own commands."""

from koe5_export.cli import demo, export, import_onnx, publish, verify

VERBS = (demo, export, import_onnx, verify, publish)
