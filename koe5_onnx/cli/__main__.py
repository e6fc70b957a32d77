"""Run the command as `python -m koe5_onnx.cli`, if its script is not on PATH."""

import sys

from koe5_onnx.cli import main

sys.exit(main())
