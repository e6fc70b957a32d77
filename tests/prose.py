"""Find words in documentation, docstrings and comments that the house style replaces.

`python tests/prose.py` checks the files in CHECKED, `python tests/prose.py FILE ...` checks the named files,
and `--all` counts the findings in every Markdown and Python file of the repository.
"""

from __future__ import annotations

import ast
import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

from doc_blocks import ROOT, prose_of

CHECKED = (
    *("*.md", "docs/**/*.md", "docs/hooks/*.py", "deploy/*.md", "kernels/**/*.md", "*/decisions/*.md"),
    *(
        "koe5_onnx/**/*.py",
        "export/koe5_export/**/*.py",
        "benchmarks/**/*.py",
        "kernels/*/*.py",
        "tests/prose.py",
    ),
)
"""Patterns of files that must have no findings. Extend them as texts are revised."""

_BRITISH_IS = (
    "final|general|initial|minim|maxim|normal|optim|organ|parallel|quant|recogn|serial|token|util|vector"
)
_COUNTED = "bytes|calls|files|folders?|lines|ms|one|pages|passages|queries|rows|scales?|texts|tokens|[KMG]i?B"
_UNITS = "batch|call|file|gigabyte|layer|line|page|passage|process|query|request|row|second|text|token|worker"
WORDS = {
    r"besides?": "use 'also', 'in addition to' or 'next to'",
    r"mend(s|ed|ing)?": "use 'fix'",
    r"in work": "use 'running'",
    r"(stock|second) graphs?": "use 'padded graph' or 'packed graph'",
    r"(behavi|col|fav|flav|hon|lab|neighb|rum)our\w*": "use the American spelling, -or",
    rf"({_BRITISH_IS})is(e[ds]?|ers?|ing|ations?)": "use the American spelling, -ize",
    r"(analys(e[ds]?|ing)|centres?|grey|licences?|metres?|catalogues?)": "use the American spelling",
    r"none where": "use 'None if'",
    r"(only|except|and|but|or) where|where (none|nothing|no|there (is|are)|it is not)": "use 'if'",
    r"(is|are|was) not so": "say what is not the case",
    r"and so (do|does|is|are|has|have|will)": "use 'too' or 'also'",
    rf"({_COUNTED}|a second) an? ({_UNITS})": "use 'per'",
    r"kept out": "use 'rejected'",
    r"(goes|went|go|gone) away": "use 'disconnects' or 'is removed'",
    r"wants": "use 'requires'",
    r"whatever": "name the things",
    r"(proofs?|prove[ds]?|proving)": "use 'certificate', or say what was measured",
    r"(house(?! style)|rooms)": "use the field's word, not a metaphor",
    r"(?<!decimal )places": "use 'position ids', 'slots' or 'padded length'",
    r"looks after": "use 'guarantees' or 'handles'",
}
_WORDS = {re.compile(rf"\b({pattern})\b", re.IGNORECASE): advice for pattern, advice in WORDS.items()}
_BEGINNING = re.compile(r"(Whether|Of|Told|What|Who|Nobody|Gives|None where)\b")
_CODE = re.compile(r"``[^`]+``|`[^`\n]+`|(?<=\])\([^)]*\)|https?://\S+|<[^>]*>|'[^'\n]+'(?=: | or )")


def findings(file: Path) -> Iterator[str]:
    """Yield a line for each finding: file, line number, word and advice."""
    is_python = file.suffix == ".py"
    for line, text in python_prose(file) if is_python else [(1, prose_of(file))]:
        plain = _CODE.sub(lambda code: re.sub(r"[^\n]", "_", code[0]), text)
        if is_python and (begins := _BEGINNING.match(plain)):
            yield f"{file}:{line}: '{begins[0]}': start a docstring with a verb or a noun phrase"
        for pattern, advice in _WORDS.items():
            for match in pattern.finditer(plain):
                number = line + plain.count("\n", 0, match.start())
                yield f"{file}:{number}: '{match[0]}': {advice}"


def python_prose(file: Path) -> Iterator[tuple[int, str]]:
    """Yield the line and the text of each comment and of each docstring, also those of attributes."""
    source = file.read_text(encoding="utf-8")
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Expr(value=ast.Constant(value=str(text))):
                yield node.lineno, text


if __name__ == "__main__":
    if sys.argv[1:] == ["--all"]:
        names = subprocess.check_output(["git", "ls-files", "*.md", "*.py"], text=True, cwd=ROOT).split()
        counts = [(len(list(findings(ROOT / name))), name) for name in names]
        sys.stdout.writelines(f"{count:5} {name}\n" for count, name in sorted(counts, reverse=True) if count)
        sys.exit()
    checked = {file for pattern in CHECKED for file in ROOT.glob(pattern)}
    files = [Path(name) for name in sys.argv[1:]] or sorted(checked)
    sys.exit("\n".join(finding for file in files for finding in findings(file)) or 0)
