"""The image that `make image` built from deploy/Dockerfile, run as its own user with its own command."""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess

import httpx
import pytest
from golden_embeddings import TINY, require_golden, texts_of
from hub_server import REPOSITORY, serving

if "KOE5_IMAGES" not in os.environ:
    pytest.skip("KOE5_IMAGES is not set. Run make image", allow_module_level=True)
BUILDAH = shlex.split(os.environ["KOE5_IMAGES"])
PORT = "8080"


def buildah(*arguments):
    return subprocess.check_output([*BUILDAH, *arguments], text=True).strip()


@pytest.fixture(scope="module")
def config():
    """Settings of the image, with a free port, because the container has this machine's network."""
    inspected = json.loads(buildah("inspect", "--type=image", "koe5-onnx"))["Docker"]["config"]
    with socket.create_server(("127.0.0.1", 0)) as free:
        return json.loads(json.dumps(inspected).replace(PORT, str(free.getsockname()[1])))


@pytest.fixture
def command():
    """Return a function that returns the command line for a command in a new container."""
    name = buildah("from", "--pull-never", "koe5-onnx")
    run = [*BUILDAH, "run", "--isolation=chroot", f"--volume={TINY}:/model:ro"]
    yield lambda *words, options=(): [*run, *options, name, "--", *words]
    buildah("rm", name)


def test_the_image_has_a_user_and_no_build_tools(command):
    tools = "for tool in g++ make cmake; do command -v $tool; done"
    code = f"id -u; touch /cache/new && echo writable; cd /; ls -d source wheels; {tools}; true"
    done = subprocess.run(command("sh", "-c", code), capture_output=True, text=True, check=True)
    assert done.stdout == "10001\nwritable\n", done.stdout + done.stderr
    words = command("sh", "-c", "id -u; ls -A /root/.cache; true", options=("--user=0",))
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout == "0\n", done.stdout


@pytest.mark.parametrize("artifact", ["/model", REPOSITORY])
def test_the_server_answers_and_stops(command, config, artifact):
    files = {str(file.relative_to(TINY)): file.read_bytes() for file in TINY.rglob("*") if file.is_file()}
    with serving(files) as hub:
        options = (f"--env=HF_ENDPOINT={hub.endpoint}", "--env=HF_HUB_DISABLE_XET=1", "--env=NO_PROXY=*")
        words = command(*config["Entrypoint"], artifact, *config["Cmd"][1:], options=options)
        with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as server:
            pid = pid_of_listening(server.stdout)
            try:
                require_answers(config)
                kind, *health = config["Healthcheck"]["Test"]
                assert kind == "CMD"
                subprocess.run(command(*health), check=True)
            finally:
                os.kill(pid, getattr(signal, config["StopSignal"]))
            rest = server.stdout.read()
    assert server.returncode == 0, rest
    assert '"message": "stopped"' in rest
    assert bool(hub.fetched) == (artifact == REPOSITORY)


def pid_of_listening(log):
    """Read the log until the server listens. Its process is visible on this machine."""
    lines = []
    for line in log:
        lines.append(line)
        if '"message": "listening"' in line:
            return json.loads(line)["pid"]
    pytest.fail("".join(lines))


def require_answers(config):
    port = config["Cmd"][-1]
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as client:
        assert "packed graph" in client.get("/info").json()["graph"]
        require_golden(client.post("/embed", json={"inputs": texts_of(TINY)}).json(), TINY)
