"""`python -m koe5_onnx.cli`: the command where its script is not on the path."""

import sys

from koe5_onnx.cli import main

sys.exit(main())
