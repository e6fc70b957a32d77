"""tests/prose.py finds words in prose but not in code."""

from __future__ import annotations

import pytest
from prose import findings


@pytest.mark.parametrize(
    ("name", "text", "found"),
    [
        ("a.md", "Rows are\nin work.", ["2: 'in work'"]),
        (
            "a.md",
            "`in work`, [see](besides.md)\n\n```sh\nmend besides\n```\n\none a line",
            ["7: 'one a line'"],
        ),
        ("a.md", "Decimal places, once a second, where it runs, one per line.", []),
        ("a.py", '"""Whether it is.\n\nNone where not."""', ["1: 'Whether'", "3: 'None where'"]),
        (
            "a.py",
            'NAME = 1\n"""Of all."""\nUSED = "besides"  # the behaviour\n',
            ["2: 'Of'", "3: 'behaviour'"],
        ),
    ],
)
def test_findings(tmp_path, name, text, found):
    file = tmp_path / name
    file.write_text(text, encoding="utf-8")
    lines = [line.removeprefix(f"{file}:").rpartition(": ")[0] for line in findings(file)]
    assert (
        sorted(line.removesuffix(": start a docstring with a verb or a noun phrase") for line in lines)
        == found
    )
