"""Makes artifacts: checkpoint -> contract -> graph(linear) -> verify -> publish.

    from koe5_export import export_checkpoint, verify_artifact

The runtime never imports this package; the two meet only at `koe5_onnx.Artifact`.
"""

from koe5_export.export import ExportOptions, export_checkpoint
from koe5_export.folder import ImportOptions, import_folder
from koe5_export.gate import Gate
from koe5_export.verify import verify_artifact

__all__ = [
    "ExportOptions",
    "Gate",
    "ImportOptions",
    "export_checkpoint",
    "import_folder",
    "verify_artifact",
]
