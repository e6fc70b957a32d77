"""The integrations leg: do the adapters work with the libraries that they adapt, and do their types fit?

The environment has 170 packages, most of which nothing else here needs, so the tests are skipped
elsewhere. About three minutes on two cores, most of it for installing.
"""

from __future__ import annotations

from environment import ROOT, Environment

EXTRAS = "cpu,export,reference,langchain,llama-index,haystack,chroma,mteb"
TESTS_NEED = ("langchain-tests", "mypy", "pytest", "sentence-transformers")
LIBRARIES = (
    "chromadb",
    "haystack",
    "langchain_core",
    "langchain_tests",
    "llama_index.core",
    "mteb",
    "sentence_transformers",
)
"""What the tests skip without."""

ASYNCIO = ("-o", "asyncio_mode=auto", "-o", "asyncio_default_fixture_loop_scope=function")
"""LangChain's tests need pytest-asyncio, whose settings a pytest without it would not know."""


def main() -> None:
    """Run the leg."""
    environment = Environment(ROOT / ".venv-integrations")
    pins = ("-c", ROOT / "constraints.txt", "-c", ROOT / "tests/legs/constraints-integrations.txt")
    environment.install(*pins, "-e", f".[{EXTRAS}]", *TESTS_NEED)
    # The tests skip where one cannot be imported; here that would be a failure.
    environment.run("python", "-c", f"import {', '.join(LIBRARIES)}")
    environment.run("mypy", "-p", "koe5_onnx.integrations")
    environment.run("pytest", *ASYNCIO, "tests/integrations")


if __name__ == "__main__":
    main()
