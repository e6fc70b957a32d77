"""docs/licenses.md matches the installed packages and pyproject.toml."""

from __future__ import annotations

import platform
import re
import sys

import pytest
from licenses import ALWAYS, PAGE, closure, requirements

ROW = re.compile(
    r"\| (?P<name>[a-z0-9-]+) \| (?P<version>[^|]+) \| (?P<license>[^|]+) \| (?P<extras>[^|]+) \|"
)


@pytest.fixture(scope="module")
def rows():
    """Return the rows of the table by package."""
    found = [ROW.fullmatch(line) for line in PAGE.read_text(encoding="utf-8").splitlines()]
    return {row["name"]: row for row in found if row}


def extras_of(row):
    return row["extras"].split(", ")


@pytest.mark.skipif(
    (sys.platform, platform.machine()) != ("linux", "x86_64"), reason="other platforms need other packages"
)
@pytest.mark.parametrize("extra", sorted(requirements()))
def test_every_package_of_an_extra_is_listed(extra, rows):
    names, always = closure(requirements()[extra]), closure(requirements()[ALWAYS])
    if names is None or always is None:
        pytest.skip(f"the packages of {extra} are not installed here")
    listed = {name for name, row in rows.items() if extra in extras_of(row)}
    assert listed == (names if extra == ALWAYS else names - always), "make licenses"


def test_every_package_has_a_license(rows):
    assert rows
    assert not [
        name for name, row in rows.items() if not row["license"].strip() or "UNKNOWN" in row["license"]
    ]


def test_the_runtime_and_the_server_need_no_package_under_the_gpl(rows):
    """The MPL is allowed, because it does not apply to code that imports the package."""
    used = {name for name, row in rows.items() if {ALWAYS, "cpu", "serve"} & set(extras_of(row))}
    assert {"numpy", "onnxruntime", "uvicorn"} <= used
    assert not [name for name in used if re.search(r"\b[AL]?GPL", rows[name]["license"])]
