"""The ray leg: does the engine ray make what the local one makes, on a local cluster of two workers?

Ray is large, so the other legs do without it and skip its tests. About two minutes on two cores.
"""

from __future__ import annotations

from environment import ROOT, Environment


def main() -> None:
    """Run the leg."""
    ray = Environment(ROOT / ".venv-ray")
    ray.install("-c", ROOT / "constraints.txt", "-e", ".[cpu,ray]", "pytest")
    # The tests skip where Ray cannot be imported; here that would be a failure.
    ray.run("python", "-c", "import ray.data")
    ray.run("pytest", "tests/bulk/test_ray.py")


if __name__ == "__main__":
    main()
