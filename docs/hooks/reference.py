"""MkDocs hook: generate the reference pages at each build from the code that they describe."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import griffe
import koe5_export
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from starlette.testclient import TestClient

import koe5_onnx
from koe5_onnx.artifact import manifest
from koe5_onnx.cli import verbs
from koe5_onnx.serve import Settings, create_app
from koe5_onnx.serve.refusals import Reason

ARTIFACT = Path(__file__).resolve().parents[2] / "tests/data/tiny-int8"
_HELP_COLUMNS = "82"
_MAIN = ("Embedder", "AsyncEmbedder", "EngineOptions")
"""The classes that the page of the Python API shows first."""
_NEVER_SENT = ("HTTPValidationError", "ValidationError")
"""Errors that FastAPI describes and this server replaces by its own."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the reference pages to the site."""
    pages = {"python": python_page, "cli": cli_page, "http": http_page, "manifest": manifest_page}
    for name, write in pages.items():
        text = "\n".join(write())
        files.append(File.generated(config, f"reference/{name}.md", content=text))
    return files


def python_page() -> Iterator[str]:
    """Yield directives that mkdocstrings replaces by the docstrings of the public names."""
    names = [name for name in koe5_onnx.__all__ if name not in {*_manifest_classes(), *_MAIN}]
    problems = [name for name in names if issubclass(getattr(koe5_onnx, name), Exception | Warning)]
    yield "# Python API\n"
    yield "The public names of `koe5_onnx`, and those of `koe5_export` for exporting checkpoints."
    yield "The classes of an artifact's manifest are on [another page](manifest.md).\n"
    yield "## Embed texts\n"
    yield from _directives("koe5_onnx", [*_MAIN, *(name for name in names if name not in problems)])
    yield "## Export and verify\n"
    yield from _directives("koe5_export", koe5_export.__all__)
    yield "## Errors and warnings\n"
    yield from _directives("koe5_onnx", problems)


def _directives(package: str, names: Iterable[str]) -> Iterator[str]:
    return (f"::: {package}.{name}\n" for name in names)


def cli_page() -> Iterator[str]:
    """Yield the help text of each subcommand, and the exit codes."""
    os.environ |= {"COLUMNS": _HELP_COLUMNS, "NO_COLOR": "1"}  # argparse has no other public setting
    parsers = argparse.ArgumentParser(prog="koe5-onnx").add_subparsers()
    for verb in verbs():
        verb.add_parser(parsers)
    yield "# Command line\n"
    yield "The output of `koe5-onnx COMMAND --help` for every command.\n"
    for name, parser in parsers.choices.items():
        yield f"## koe5-onnx {name}\n"
        yield from _code_block(parser.format_help())
    yield "## Exit codes\n"
    yield from _code_block((koe5_onnx.cli.__doc__ or "").partition("Exit codes::\n\n")[2])


def _code_block(text: str) -> tuple[str, ...]:
    return ("```text", text.rstrip(), "```\n")


def http_page() -> Iterator[str]:
    """Yield tables of the routes, their fields and the errors, from the server's OpenAPI schema."""
    with (
        koe5_onnx.Embedder.open(ARTIFACT, threads=1) as embedder,
        TestClient(create_app(embedder, Settings(artifact=str(ARTIFACT)))) as client,
    ):
        schema = client.get("/openapi.json").json()
    yield "# HTTP API\n"
    yield "A running server describes itself at `/docs` and as OpenAPI JSON at `/openapi.json`.\n"
    yield "## Routes\n"
    yield from _table(("route", "what it does", "request body", "response body"), _routes(schema))
    schemas = schema["components"]["schemas"]
    for name, model in schemas.items():
        if "properties" in model and name not in _NEVER_SENT:
            yield f"## {name}\n\n{model.get('description', '')}\n"
            yield from _table(("field", "type", "default", "description"), _fields(model, schemas))
    yield "## Errors\n"
    yield "Errors of the OpenAI routes are an [ErrorResponse](#errorresponse)."
    yield "Those of the TEI routes are a [TeiError](#teierror).\n"
    yield from _table(("error", "OpenAI: status", "code", "type", "TEI: status", "error_type"), _errors())


def _routes(schema: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    schemas = schema["components"]["schemas"]
    for path, methods in schema["paths"].items():
        for method, route in methods.items():
            contents = (route.get("requestBody", {}), route["responses"]["200"])
            bodies = [
                one.get("content", {}).get("application/json", {}).get("schema", {}) for one in contents
            ]
            yield f"`{method.upper()} {path}`", route["summary"], *(_type(body, schemas) for body in bodies)


def _fields(model: dict[str, Any], schemas: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    for name, field in model["properties"].items():
        required = name in model.get("required", ())
        default = "required" if required else f"`{json.dumps(field.get('default'))}`"
        yield f"`{name}`", _type(field, schemas), default, field.get("description", "")


def _type(schema: dict[str, Any], schemas: dict[str, Any]) -> str:
    """Describe a JSON schema in words."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return (
            f"[{name}](#{name.lower()})" if "properties" in schemas[name] else _type(schemas[name], schemas)
        )
    if "anyOf" in schema:
        return " or ".join(_type(one, schemas) for one in schema["anyOf"])
    if "enum" in schema or "const" in schema:
        return " or ".join(f"`{json.dumps(value)}`" for value in schema.get("enum", [schema.get("const")]))
    if schema.get("type") == "array":
        return f"list of {_type(schema['items'], schemas)}"
    return str(schema.get("type", ""))


def _errors() -> Iterator[tuple[str, ...]]:
    for reason in Reason:
        status, kind, code, *tei = reason.value
        cells = (reason.name.lower().replace("_", " "), status, code or "", kind, *tei)
        yield tuple(map(str, cells))


def manifest_page() -> Iterator[str]:
    """Yield a table of the fields of each class of the manifest."""
    module = griffe.load("koe5_onnx.artifact.manifest", docstring_parser="google")
    yield "# Manifest\n"
    yield f"The fields of an artifact's `manifest.json`, format version {manifest.FORMAT_VERSION}.\n"
    for name in _manifest_classes():
        documented = module.classes[name]
        yield f"## {name}\n\n{documented.docstring.value if documented.docstring else ''}\n"
        yield from _table(("field", "type", "default", "description"), _attributes(documented))


def _attributes(documented: griffe.Class) -> Iterator[tuple[str, ...]]:
    for field in dataclasses.fields(getattr(manifest, documented.name)):
        if (docstring := documented.attributes[field.name].docstring) is None:
            raise ValueError(f"{documented.name}.{field.name} has no docstring")
        default = "required"
        if field.default is not dataclasses.MISSING:
            default = f"`{json.dumps(field.default)}`"
        elif field.default_factory is not dataclasses.MISSING:
            default = f"`{json.dumps(field.default_factory())}`"
        annotation = str(documented.attributes[field.name].annotation).replace("[", "\\[")
        linked = re.sub(
            "|".join(_manifest_classes()), lambda name: f"[{name[0]}](#{name[0].lower()})", annotation
        )
        yield f"`{field.name}`", linked, default, docstring.value


def _manifest_classes() -> list[str]:
    """Return the names of the manifest's classes, the one of the whole file first."""
    *parts, whole = (name for name, one in vars(manifest).items() if dataclasses.is_dataclass(one))
    return [whole, *parts]


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    for row in (head, ("---",) * len(head), *rows):
        cells = (cell.replace("\n", " ").replace(" | ", " or ") for cell in row)
        yield f"| {' | '.join(cells)} |"
    yield ""
