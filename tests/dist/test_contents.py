"""Contents of the release files, and their page on a package index."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
if "KOE5_DIST" not in os.environ:
    pytest.skip("KOE5_DIST is not set. Run make dist", allow_module_level=True)
DIST = Path(os.environ["KOE5_DIST"])
MACHINES = ("x86_64", "aarch64")
"""CPU architectures of the kernels' wheels."""
WHEELS = ("koe5_onnx-*-any", *(f"koe5_onnx_kernels-*_{machine}" for machine in MACHINES))


def find_wheel(pattern):
    (file,) = DIST.glob(f"{pattern}.whl")
    return file


@pytest.fixture(params=WHEELS)
def wheel(request):
    return find_wheel(request.param)


@pytest.fixture
def package(wheel):
    return wheel.name.partition("-")[0]


@pytest.fixture(params=MACHINES)
def kernels(request):
    return find_wheel(f"koe5_onnx_kernels-*_{request.param}")


@pytest.fixture
def sdist(package):
    (file,) = DIST.glob(f"{package}-*.tar.gz")
    return file


@pytest.fixture
def names(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


@pytest.fixture
def metadata(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return message_from_bytes(archive.read(name))


def in_sdist(sdist):
    """Return the paths of an sdist's files, without its top-level folder."""
    with tarfile.open(sdist) as archive:
        return {name.partition("/")[2] for name in archive.getnames()}


def run_tool(name, *arguments):
    command = [Path(sys.executable).with_name(name), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_only_three_wheels_and_two_sdists_are_released():
    found = {file.name.partition("-")[0] for file in DIST.iterdir()}
    assert (found, len(list(DIST.iterdir()))) == (set(SOURCES), 5)


SOURCES = {
    "koe5_onnx": ["koe5_onnx", "export/koe5_export"],
    "koe5_onnx_kernels": ["kernels/koe5_onnx_kernels"],
}
"""Folders that a wheel contains completely, by package."""


def test_wheel_contains_exactly_its_packages(package, wheel, names):
    tops = {Path(folder).name for folder in SOURCES[package]}
    assert {name.partition("/")[0] for name in names if ".dist-info/" not in name} == tops
    if package == "koe5_onnx_kernels":
        found = {name.partition("/")[2] for name in names if name.startswith(f"{package}/")}
        assert found == {"", "__init__.py", "py.typed", "libkoe5_kernels.so"}
    else:
        folders = [f"--package={CHECKOUT / folder}" for folder in SOURCES[package]]
        run_tool("check-wheel-contents", "--no-config", "--toplevel", ",".join(tops), *folders, wheel)


def test_wheel_contains_type_markers_and_the_license(names):
    for top in {name.partition("/")[0] for name in names if ".dist-info/" not in name}:
        assert f"{top}/py.typed" in names
    assert any(re.fullmatch(r"[^/]+\.dist-info/licenses/LICENSE", name) for name in names)


def test_wheel_contains_no_tests_and_no_benchmarks(names):
    assert not [name for name in names if re.search(r"(^|/)(tests?|bench(marks)?|conftest\.py)(/|$)", name)]


def test_sdist_contains_source_and_tests(package, sdist):
    found = in_sdist(sdist)
    wanted = {"pyproject.toml", "README.md", "LICENSE", "PKG-INFO"}
    if package == "koe5_onnx":
        wanted |= {"Makefile", "constraints.txt", "tests/tolerances.py", "docs/examples/README.md"}
    else:
        wanted |= {"CMakeLists.txt", "exports.map", "src/register.cc", "koe5_onnx_kernels/py.typed"}
    assert wanted <= found
    assert not [
        name for name in found if re.search(r"(^|/)(__pycache__|\.venv|build|dist)(/|$)|\.(so|pyc)$", name)
    ]


def test_metadata(package, metadata):
    assert metadata["Name"] == package.replace("_", "-")
    assert (metadata["License-Expression"], metadata.get_all("License-File")) == ("MIT", ["LICENSE"])
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["Summary"]
    assert metadata["Keywords"]
    assert "Typing :: Typed" in metadata.get_all("Classifier")


def test_the_command_is_installed(package, wheel):
    with zipfile.ZipFile(wheel) as archive:
        points = [
            archive.read(name).decode() for name in archive.namelist() if name.endswith("entry_points.txt")
        ]
    assert points == (
        ["[console_scripts]\nkoe5-onnx = koe5_onnx.cli:main\n"] if package == "koe5_onnx" else []
    )


def test_the_page_of_an_index_renders_without_dead_links(package, metadata):
    from readme_renderer.markdown import render

    assert metadata["Description-Content-Type"] == "text/markdown"
    page = render(metadata.get_payload(decode=True).decode("utf-8"))
    assert page is not None
    assert "<table>" in page
    assert "<pre" in page
    assert not [
        link for link in re.findall(r'(?:href|src)="([^"]*)"', page) if not link.startswith(("https://", "#"))
    ]


def test_the_kernels_run_on_old_linux_systems(kernels):
    """The tag names the oldest glibc that has all symbols of the library, according to auditwheel."""
    shown = " ".join(run_tool("auditwheel", "show", kernels).split())
    tag = re.search(r'is consistent with the following platform tag: "(manylinux_2_(\d+)_\w+)"', shown)
    assert tag is not None, shown
    assert int(tag[2]) <= 28
    name, _, platforms = kernels.stem.rpartition("-")
    assert name.endswith("-py3-none")
    assert tag[1] in platforms.split(".")


def test_the_library_of_the_kernels_contains_no_build_paths(kernels):
    with zipfile.ZipFile(kernels) as archive:
        (library,) = (name for name in archive.namelist() if name.endswith(".so"))
        assert not re.search(rb"/[\w./-]*koe5[\w./-]*\.(cc|h)", archive.read(library))
