"""Makes artifacts: checkpoint -> contract -> graph(linear) -> verify -> publish.

    from koe5_export import export, verify

The runtime never imports this package; the two meet only at `koe5_onnx.Artifact`.
"""

from koe5_export.export import ExportOptions, export
from koe5_export.verify import Gate, verify

__all__ = ["ExportOptions", "Gate", "export", "verify"]
