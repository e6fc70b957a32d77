"""The deployment files pass linters and match the options of the command that they run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from koe5_onnx.cli import parse

yaml = pytest.importorskip("yaml")

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
DOCKERFILES = [DEPLOY / "Dockerfile", DEPLOY / "Dockerfile.cuda"]
KUBERNETES = [DEPLOY / "kubernetes.yaml", DEPLOY / "kubernetes-autoscale.yaml"]
GITHUB = ROOT / ".github"
WORKFLOWS = [*sorted((GITHUB / "workflows").iterdir()), GITHUB / "dependabot.yml"]
YAML = [DEPLOY / "compose.yaml", *KUBERNETES]


def lint(name, *arguments):
    # The virtual environment may not be on the PATH.
    found = shutil.which(name, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if found is None:
        pytest.skip(f"{name} is not installed")
    done = subprocess.run([found, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.name)
def test_hadolint(file):
    lint("hadolint", str(file))


@pytest.mark.parametrize("file", YAML, ids=lambda file: file.name)
def test_yamllint(file):
    lint("yamllint", "-d", "{extends: default, rules: {line-length: {max: 110}}}", str(file))


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.name)
def test_github_schema(file):
    kind = "dependabot" if file.name == "dependabot.yml" else "github-workflows"
    lint("check-jsonschema", "--builtin-schema", f"vendor.{kind}", str(file))


def test_zizmor():
    lint("zizmor", "--offline", "--no-progress", str(GITHUB))


def test_workflows_run_targets_of_make():
    makefile = (ROOT / "Makefile").read_text()
    legs = re.search(r"^LEGS := (.*)", makefile, re.MULTILINE)[1].split()
    targets = re.findall(r"^([a-z-]+):.*## ", makefile, re.MULTILINE)
    used = {target for file in WORKFLOWS for target in re.findall(r"run: make (.*)", file.read_text())}
    assert used == {"check", "test", "dist", "docs"}
    assert used <= {*targets, *legs}


@pytest.mark.parametrize("file", KUBERNETES, ids=lambda file: file.name)
def test_kubernetes_validate(file):
    validate = pytest.importorskip("kubernetes_validate")
    for document in documents(file):
        validate.validate(document, validate.latest_version(), strict=True)


def documents(file=KUBERNETES[0]):
    return list(yaml.safe_load_all(file.read_text()))


def test_the_autoscaler_uses_a_metric_of_the_server():
    scaler, adapter = documents(KUBERNETES[1])
    deployment = documents()[0]
    target = scaler["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == (deployment["kind"], deployment["metadata"]["name"])
    assert scaler["spec"]["minReplicas"] == deployment["spec"]["replicas"]
    (metric,) = scaler["spec"]["metrics"]
    (rule,) = yaml.safe_load(adapter["data"]["config.yaml"])["rules"]
    name = metric["pods"]["metric"]["name"]
    assert rule["name"]["as"] == rule["name"]["matches"] == name
    assert rule["seriesQuery"].startswith(f"{name}{{")
    metrics = pytest.importorskip("koe5_onnx.serve.metrics")
    assert f"\n{name} 0.0\n".encode() in metrics.Metrics().text()


@pytest.fixture
def container():
    (found,) = documents()[0]["spec"]["template"]["spec"]["containers"]
    return found


@pytest.fixture
def compose():
    return yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]["koe5"]


def commands():
    """Yield the names of files that run `koe5-onnx serve`, each with its arguments."""
    for file in DOCKERFILES:
        yield file.name, re.findall(r'"([^"]+)"', re.search(r"^CMD (\[.*\])", file.read_text(), re.M)[1])
    yield "compose.yaml", yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]["koe5"]["command"]
    spec = documents()[0]["spec"]["template"]["spec"]
    yield "kubernetes.yaml", spec["containers"][0]["args"]


@pytest.mark.parametrize(("file", "arguments"), list(commands()))
def test_the_server_accepts_the_arguments_of_the_files(file, arguments):
    args = parse(["serve", *arguments])
    assert (args.artifact, args.host, args.port) == ("/model", "0.0.0.0", 8080)
    assert args.device == ("cuda" if file.endswith("cuda") else "cpu")


def test_ports_and_probes(container, compose):
    assert [port["containerPort"] for port in container["ports"]] == [8080]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"] == {"path": "/health", "port": "http"}
    (mapping,) = compose["ports"]
    assert mapping == "127.0.0.1:8080:8080"
    for file in DOCKERFILES:
        assert "EXPOSE 8080" in file.read_text()
        assert "http://127.0.0.1:8080/health" in file.read_text()


def test_the_grace_period_exceeds_the_shutdown_time(container, compose):
    def shutdown_s(arguments):
        return parse(["serve", *arguments]).shutdown_s

    grace_s = documents()[0]["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    wait_s = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert grace_s > wait_s + shutdown_s(container["args"])
    assert int(compose["stop_grace_period"].removesuffix("s")) > shutdown_s(compose["command"])


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.name)
def test_images_run_unprivileged_and_install_existing_extras(file):
    text = file.read_text()
    last_stage = text[text.rindex("\nFROM ") :]
    assert re.search(r"^USER 10001$", last_stage, re.M)
    assert "g++" not in last_stage
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for named in re.findall(r"\[([a-z,]+)\]'", text):
        assert set(named.split(",")) <= set(extras)


def test_the_build_context_contains_what_the_image_needs():
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert {package.partition("/")[0] for package in packages} <= kept
    assert {"kernels", "constraints.txt", "pyproject.toml", "README.md", "LICENSE"} <= kept


def test_the_root_file_system_is_read_only(container, compose):
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert compose["read_only"] is True
    mounted = {mount["mountPath"] for mount in container["volumeMounts"]}
    assert {"/model", "/cache", "/tmp"} <= mounted


def test_the_documentation_lists_all_metrics():
    pytest.importorskip("prometheus_client")
    from koe5_onnx.serve.metrics import Metrics

    types = re.findall(r"^# TYPE (koe5_\w+)", Metrics().text().decode(), re.M)
    there = {name for name in types if not name.endswith("_created")}
    named = set(re.findall(r"`(koe5_\w+)`", (DEPLOY.parent / "docs/serving.md").read_text("utf-8")))
    assert named == there
