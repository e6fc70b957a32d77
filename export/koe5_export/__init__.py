"""Export checkpoints as artifacts: checkpoint -> contract -> graph -> verify -> artifact.

    from koe5_export import export_checkpoint, verify_artifact

Names are imported on first use, because the command line imports this package even if it only lists commands.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from koe5_export.export import ExportOptions, export_checkpoint
    from koe5_export.gate import Gate
    from koe5_export.import_onnx import ImportOptions, import_folder
    from koe5_export.verify import verify_artifact

_MODULES = {
    "ExportOptions": "export",
    "Gate": "gate",
    "ImportOptions": "import_onnx",
    "export_checkpoint": "export",
    "import_folder": "import_onnx",
    "verify_artifact": "verify",
}

__all__ = [
    "ExportOptions",
    "Gate",
    "ImportOptions",
    "export_checkpoint",
    "import_folder",
    "verify_artifact",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
