"""The cluster's files fit the repository and each other. Nothing is built here."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yaml").read_text())
    return found


@pytest.fixture(scope="module")
def instructions() -> list[tuple[str, str]]:
    text = (DOCKER / "Dockerfile").read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in lines)]


def test_what_an_image_copies_is_there(instructions: list[tuple[str, str]]) -> None:
    copied = {
        source
        for name, rest in instructions
        if name == "COPY"
        for source in rest.split()[:-1]
        if not source.startswith("--")
    }
    assert {"requirements.lock", "pyproject.toml"} <= copied
    assert [source for source in copied if not (ROOT / source).exists()] == []
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert packages - {"tests"} <= copied


def test_every_service_has_a_stage_and_every_stage_a_service(
    compose: dict[str, Any], instructions: list[tuple[str, str]]
) -> None:
    stages = {rest.split(" AS ")[1] for name, rest in instructions if name == "FROM"}
    services = compose["services"].values()
    assert {service["build"]["target"] for service in services} == stages - {"base"}
    for service in services:
        build = service["build"]
        assert (DOCKER / build["context"] / build["dockerfile"]).is_file()
        volumes = {volume.partition(":")[0] for volume in service.get("volumes", ())}
        assert volumes <= set(compose["volumes"])
        assert set(service["secrets"]) <= set(compose["secrets"])


def test_containers_of_a_machine_share_the_locks_of_its_cores(compose: dict[str, Any]) -> None:
    for name in ("head", "worker", "gpu-worker"):
        assert "locks:/tmp/cprune-1000" in compose["services"][name]["volumes"]
    assert "useradd --create-home --uid 1000 cprune" in (DOCKER / "Dockerfile").read_text()


def test_ray_speaks_to_those_with_the_token_alone(
    compose: dict[str, Any], instructions: list[tuple[str, str]]
) -> None:
    environment = " ".join(rest for name, rest in instructions if name == "ENV")
    assert "RAY_AUTH_MODE=token" in environment and "RAY_ADDRESS=" in environment
    for service in compose["services"].values():
        assert service["environment"]["RAY_AUTH_TOKEN_PATH"] == "/run/secrets/ray_token"
    published = [port for s in compose["services"].values() for port in s.get("ports", ())]
    assert all(port.startswith("127.0.0.1:") for port in published)


def test_the_launchers_file_is_one_for_ray() -> None:
    config = yaml.safe_load((DOCKER / "cluster.yaml").read_text())
    validate_config(prepare_config(config))
    assert "--env=RAY_ADDRESS=auto" in config["docker"]["head_run_options"]
    volumes = [o for o in config["docker"]["run_options"] if o.endswith(":/tmp/cprune-1000")]
    assert volumes and "=/" not in volumes[0], "a folder of the host would be root's"


def test_the_image_has_what_the_launcher_calls_inside(instructions: list[tuple[str, str]]) -> None:
    installed = " ".join(rest for name, rest in instructions if name == "RUN")
    assert {"rsync", "openssh-client"} <= set(installed.split())
    assert "ssh_private_key" in yaml.safe_load((DOCKER / "cluster.yaml").read_text())["auth"]


def test_documented_files_are_there() -> None:
    text = (DOCKER / "README.md").read_text() + (DOCKER / "cluster.yaml").read_text()
    named = set(re.findall(r"(?:docker|orchestrator)/[\w.]+", text)) - {"docker/ray_token"}
    assert {"docker/compose.yaml", "docker/cluster.yaml", "orchestrator/__main__.py"} <= named
    assert [name for name in named if not (ROOT / name).is_file()] == []
    assert "docker/ray_token" in (ROOT / ".gitignore").read_text().splitlines()
