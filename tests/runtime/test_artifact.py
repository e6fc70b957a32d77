"""An artifact can be opened; missing or damaged files and unsupported manifests raise an error."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
from pathlib import Path

import pytest
from edited_json import edited

from koe5_onnx import Artifact, ArtifactError, Manifest
from koe5_onnx.artifact import GRAPHS, MANIFEST, TOKENIZER, describe_file, weights_of

GRAPH = GRAPHS["int8"]
WEIGHTS = weights_of(GRAPH)

MISSING = object()
"""Value with which `change` removes a field."""


def change(folder: Path, path: str, value: object) -> None:
    """Set the manifest's field at `path`, such as "contract>dim"."""
    *parents, name = path.split(">")
    with edited(folder / MANIFEST) as manifest:
        owner = _at(manifest, parents)
        if value is MISSING:
            del owner[name]
        else:
            owner[name] = value


def test_opens(artifact_path):
    artifact = Artifact.open(artifact_path)
    assert artifact.path == artifact_path
    assert artifact.manifest.contract.max_tokens == 512
    assert artifact.manifest.certificate is not None
    assert artifact.graph == artifact_path / GRAPH
    assert artifact.tokenizer == artifact_path / TOKENIZER


def test_opens_by_a_str(artifact_path):
    assert Artifact.open(str(artifact_path)) == Artifact.open(artifact_path)


def test_manifest_survives_writing_and_reading(artifact_path):
    manifest = Artifact.open(artifact_path).manifest
    assert Manifest.from_json(manifest.to_json()) == manifest
    unmeasured = dataclasses.replace(manifest, certificate=None)
    assert Manifest.from_json(unmeasured.to_json()) == unmeasured


def test_describe_file(tmp_path):
    file = tmp_path / "file"
    file.write_bytes(b"abc")
    description = describe_file(file)
    assert (description.bytes, description.sha256) == (3, hashlib.sha256(b"abc").hexdigest())


@pytest.mark.parametrize("name", [GRAPH, WEIGHTS, TOKENIZER])
class TestFiles:
    def test_missing(self, artifact_copy, name):
        (artifact_copy / name).unlink()
        with pytest.raises(ArtifactError, match=f"{name} is missing"):
            Artifact.open(artifact_copy)

    def test_one_flipped_bit(self, artifact_copy, name):
        content = bytearray((artifact_copy / name).read_bytes())
        content[len(content) // 2] ^= 1
        (artifact_copy / name).write_bytes(content)
        with pytest.raises(ArtifactError, match=f"the SHA-256 of .*{name} differs"):
            Artifact.open(artifact_copy)
        Artifact.open(artifact_copy, check=False)

    @pytest.mark.parametrize("check", [True, False])
    def test_cut_short(self, artifact_copy, name, check):
        content = (artifact_copy / name).read_bytes()
        (artifact_copy / name).write_bytes(content[:-1])
        with pytest.raises(
            ArtifactError, match=f"{name} has {len(content) - 1} bytes: expected {len(content)}"
        ):
            Artifact.open(artifact_copy, check=check)

    def test_not_listed(self, artifact_copy, name):
        change(artifact_copy, f"files>{name}", MISSING)
        with pytest.raises(ArtifactError, match=f"does not list {name}"):
            Artifact.open(artifact_copy)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("format_version", 2, r"format version 2: this koe5-onnx reads version 1"),
        ("format_version", "1", r"format version '1'"),
        ("format_version", True, r"format_version: expected int, found True"),
        ("format_version", MISSING, r"format version None"),
        ("precision", MISSING, r"manifest\.json lacks required fields: precision"),
        (
            "precision",
            "int2",
            r"precision is 'int2': expected one of fp32, fp16, int8, .* or update koe5-onnx",
        ),
        ("contract>pooling", MISSING, r"contract lacks required fields: pooling"),
        ("certificate>overall>cosine_min", MISSING, r"overall lacks required fields: cosine_min"),
        ("compression", "zstd", r"unknown fields: compression\. Update"),
        ("contract>instruction", "x", r"contract has unknown fields: instruction"),
        ("contract>dim", "32", r"contract: dim: expected int, found '32'"),
        ("contract>dim", 32.5, r"dim: expected int, found 32\.5"),
        ("contract>normalize", 1, r"normalize: expected bool, found 1"),
        ("contract>max_tokens", None, r"max_tokens: expected int, found None"),
        ("contract>prompts", ["query: "], r"prompts: expected an object, found list"),
        ("contract>prompts>query", 7, r"prompts\.query: expected str, found 7"),
        ("certificate>overall>cosine_min", "0.99", r"cosine_min: expected float, found '0\.99'"),
        ("source", None, r"source: expected an object, found NoneType"),
        ("files", [], r"files: expected an object, found list"),
        (f"files>{GRAPH}>bytes", "9", r"bytes: expected int, found '9'"),
    ],
)
def test_manifest_that_does_not_fit(artifact_copy, path, value, message):
    change(artifact_copy, path, value)
    with pytest.raises(ArtifactError, match=message):
        Artifact.open(artifact_copy)


def test_every_field_is_needed(artifact_path):
    whole = json.loads((artifact_path / MANIFEST).read_text(encoding="utf-8"))
    sections = [
        (),
        ("source",),
        ("architecture",),
        ("contract",),
        ("certificate",),
        ("certificate", "overall"),
    ]
    for section in sections:
        for name in _at(whole, section).keys() - {"packed_certificate", "fused_operators"}:
            damaged = copy.deepcopy(whole)
            del _at(damaged, section)[name]
            with pytest.raises(ArtifactError, match=rf"lacks required fields: {name}\.|format version None"):
                Manifest.from_json(json.dumps(damaged))


def _at(manifest: dict, section: list[str] | tuple[str, ...]) -> dict:
    for name in section:
        manifest = manifest[name]
    return manifest


def test_whole_numbers_are_floats_too(artifact_copy):
    change(artifact_copy, "certificate>overall>cosine_min", 1)
    certificate = Artifact.open(artifact_copy).manifest.certificate
    assert certificate is not None
    assert type(certificate.overall.cosine_min) is float


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not JSON"),
        (b"{", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b'{"format_version": ' + b"9" * 5000 + b"}", "is not JSON"),
        (b'{"precision": "\xff"}', "is not UTF-8"),
        (b"[]", "format version None"),
        (b'"text"', "format version None"),
    ],
)
def test_manifest_that_is_no_manifest(artifact_copy, content, message):
    (artifact_copy / MANIFEST).write_bytes(content)
    with pytest.raises(ArtifactError, match=message):
        Artifact.open(artifact_copy)


def test_folder_without_manifest(tmp_path):
    with pytest.raises(
        ArtifactError, match=r"has no manifest\.json\. Pass a folder created by koe5-onnx export"
    ):
        Artifact.open(tmp_path)


def test_a_file_in_place_of_the_folder(artifact_path):
    with pytest.raises(ArtifactError, match=r"is a file: expected an artifact folder"):
        Artifact.open(artifact_path / MANIFEST)


@pytest.mark.parametrize("name", ["nowhere", "a/b/c", "/nowhere/at/all", "owner/na me", Path("owner/name")])
def test_neither_a_folder_nor_a_hub_id(name):
    with pytest.raises(ArtifactError, match="does not exist: expected an artifact folder or a Hub id"):
        Artifact.open(name)


def test_a_hub_id_that_fails_names_both_meanings():
    """The network is disabled (conftest.py), and the cache does not have the artifact."""
    with pytest.raises(
        ArtifactError,
        match=r"nobody/nothing is not a local folder, and koe5-onnx cannot download .*HF_HUB_OFFLINE",
    ):
        Artifact.open("nobody/nothing")
