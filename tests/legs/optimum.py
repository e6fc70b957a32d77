"""The optimum leg: does the exporter optimum work, on the versions that Optimum allows?

Optimum needs an older transformers than the rest of this project uses, so its tests are skipped elsewhere.
The same environment shows that the reference is the same with sentence-transformers 5 and transformers 4.
About two minutes on two cores, most of it for installing PyTorch.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from environment import ROOT, Environment, other_pins

PINS = {
    "huggingface-hub": "0.36.2",
    "optimum": "2.1.0",
    "optimum-onnx": "0.1.0",
    "sentence-transformers": "5.7.0",
    "tokenizers": "0.22.2",
    "transformers": "4.57.6",
}
"""What Optimum allows. Source: https://pypi.org/pypi/optimum-onnx/0.1.0/json (requires_dist)"""
ABSENT = ("datasets", "onnxscript", "torchvision")
"""What the extra must not bring: an export needs none of them."""


def main() -> None:
    """Run the leg."""
    optimum = Environment(ROOT / ".venv-optimum")
    with tempfile.TemporaryDirectory(prefix="koe5-optimum-") as folder:
        constraints = Path(folder) / "optimum.txt"
        pins = [f"{name}=={version}" for name, version in PINS.items()]
        constraints.write_text("\n".join([*pins, *other_pins(PINS)]), encoding="utf-8")
        optimum.install("-c", constraints, "-e", ".[cpu,export,reference,optimum]", "pytest")
    if present := [name for name in ABSENT if optimum.where(name, ROOT)]:
        sys.exit(f"the extra optimum must not bring {', '.join(present)}: see pyproject.toml")
    # The tests skip where Optimum cannot be imported; here that would be a failure.
    optimum.run("python", "-c", "import optimum.exporters.onnx")
    optimum.run("pytest", *(f"tests/export/test_{name}.py" for name in ("optimum", "reference", "settings")))


if __name__ == "__main__":
    main()
