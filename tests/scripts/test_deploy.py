"""The files of scripts/deploy: what they must agree on."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml
from support.checkout import ROOT
from support.deploy import CHART, DEPLOY, EVERYTHING, IMAGE, KUBERNETES, NEEDED, check_schema, of_kind, render

from dlrm_factory.tools.cli.main import app
from dlrm_factory.tools.server.settings import load_properties

# --- KServe ---


def runtime() -> dict[str, Any]:
    spec: dict[str, Any] = yaml.safe_load((DEPLOY / "kserve" / "runtime.yaml").read_text())["spec"]
    return spec


def runtime_pod() -> dict[str, Any]:
    """The pod that KServe makes of the runtime, but for what an InferenceService adds."""
    spec = {key: runtime()[key] for key in ("containers", "volumes")}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": spec}


@pytest.mark.parametrize("version", KUBERNETES)
def test_the_runtime_of_kserve_is_a_pod(version: str) -> None:
    check_schema(runtime_pod(), version)


def test_kserve_leads_to_the_proxy() -> None:
    """KServe's Service takes the first port of the container kserve-container."""
    spec = runtime()
    first = spec["containers"][0]
    assert first["name"] == "kserve-container"
    assert first["ports"][0]["containerPort"] == int(re.findall(r"listen 0\.0\.0\.0:(\d+)", nginx_conf())[0])
    assert "--models={{.Name}}=dlrm.mar" in first["args"]
    assert "--model-store=/mnt/models" in first["args"]


def test_the_inference_service_asks_for_the_runtime() -> None:
    service = yaml.safe_load((DEPLOY / "kserve" / "inference-service.yaml").read_text())
    named = yaml.safe_load((DEPLOY / "kserve" / "runtime.yaml").read_text())["metadata"]["name"]
    predictor = service["spec"]["predictor"]
    formats = {(each["name"], each["version"]) for each in runtime()["supportedModelFormats"]}
    assert predictor["model"]["runtime"] == named
    assert tuple(predictor["model"]["modelFormat"].values()) in formats
    assert predictor["model"]["protocolVersion"] in runtime()["protocolVersions"]
    args = dict(arg.split("=", 1) for arg in runtime()["containers"][0]["args"] if "=" in arg)
    stop = int(runtime()["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][1])
    needed = stop + int(args["--drain-delay"]) + int(args["--drain-seconds"])
    assert predictor["terminationGracePeriodSeconds"] > needed


# --- Security of both ---


def pods(helm: Path) -> list[dict[str, Any]]:
    chart = of_kind(render(helm, NEEDED), "Deployment")["spec"]["template"]["spec"]
    return [chart, runtime_pod()["spec"]]


def containers(pod: dict[str, Any]) -> list[dict[str, Any]]:
    return [*pod.get("initContainers", []), *pod["containers"]]


def test_no_container_may_more_than_it_needs(helm: Path) -> None:
    for pod in pods(helm):
        assert len(containers(pod)) == 2
        for container in containers(pod):
            security = {**pod.get("securityContext", {}), **container["securityContext"]}
            assert security["runAsNonRoot"]
            assert security["runAsUser"] == 10001
            assert security["readOnlyRootFilesystem"]
            assert security["allowPrivilegeEscalation"] is False
            assert security["capabilities"] == {"drop": ["ALL"]}
            assert security["seccompProfile"] == {"type": "RuntimeDefault"}
            assert container["resources"]["limits"]["memory"]


def test_what_is_written_lies_on_volumes(helm: Path) -> None:
    for pod in pods(helm):
        volumes = {volume["name"] for volume in pod["volumes"]}
        for container in containers(pod):
            mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
            assert set(mounts.values()) <= volumes
            assert {"/run/dlrm", "/tmp"} <= set(mounts)
        server = pod["containers"][0]
        assert "/var/cache/dlrm" in {mount["mountPath"] for mount in server["volumeMounts"]}


def test_tokens_are_asked_for_before_the_server(helm: Path) -> None:
    """TorchServe asks for none on loopback, so the proxy must have tokens, and nothing but metrics may be open."""
    for pod in pods(helm):
        (server,) = [each for each in containers(pod) if "--no-token-auth" in each.get("args", [])]
        (proxy,) = [each for each in containers(pod) if each["name"] == "proxy"]
        assert server["name"] != "proxy"
        (secret,) = [volume["name"] for volume in pod["volumes"] if "secret" in volume]
        mounts = {mount["name"]: mount["mountPath"] for mount in proxy["volumeMounts"]}
        assert mounts[secret] == "/etc/dlrm/tokens"
        assert f"tokens=${{DLRM_TOKENS:-{mounts[secret]}}}" in (IMAGE / "proxy").read_text()
        assert f"--ts-config={settings_path()}" in server["args"]


def settings_path() -> str:
    (path,) = re.findall(r"^COPY config\.properties (\S+)$", dockerfile(), re.MULTILINE)
    return str(path)


def test_the_image_keeps_all_of_torchserve_on_loopback() -> None:
    assert "COPY config.properties /etc/dlrm/config.properties" in dockerfile()
    assert settings_path() == "/etc/dlrm/config.properties"
    ours = load_properties(ROOT / "config.properties")
    addresses = [value for name, value in ours.items() if name.endswith("_address")]
    assert len(addresses) >= 3
    assert all("127.0.0.1" in value for value in addresses)
    (upstream,) = re.findall(r"server (127\.0\.0\.1:\d+)", nginx_conf())
    assert ours["inference_address"] == f"http://{upstream}"


# --- Options ---


def options_of(command: str) -> set[str]:
    group = typer.main.get_command(app)
    found = group.commands[command]  # type: ignore[attr-defined]
    return {word for parameter in found.params for word in parameter.opts if word.startswith("--")}


def given(words: list[str]) -> tuple[str, set[str]]:
    """Name of the command, and its options."""
    return words[0], {word.split("=", 1)[0] for word in words if word.startswith("--")}


def unit_command(name: str) -> list[str]:
    text = (DEPLOY / "systemd" / name).read_text().replace("\\\n", " ")
    (line,) = re.findall(r"^ExecStart=/opt/dlrm/bin/dlrm (.*)$", text, re.MULTILINE)
    return shlex.split(line)


def test_every_option_exists(helm: Path) -> None:
    (cmd,) = re.findall(r"^CMD (\[.*?\])", dockerfile().replace("\\\n", " "), re.MULTILINE)
    (chart,) = of_kind(render(helm, EVERYTHING), "Deployment")["spec"]["template"]["spec"]["containers"]
    commands = [json.loads(cmd), chart["args"], runtime()["containers"][0]["args"]]
    commands += [unit_command("dlrm.service"), unit_command("dlrm-join.service")]
    missing = set()
    for name, options in map(given, commands):
        assert len(options) > 2
        missing |= options - options_of(name)
    assert missing == set()


# --- The image ---


def dockerfile() -> str:
    return (IMAGE / "Dockerfile").read_text()


def nginx_conf() -> str:
    return (IMAGE / "nginx.conf").read_text()


def test_the_image_has_the_packages_of_the_lock_alone() -> None:
    """Packages come from lock files, none by a name and a version of its own."""
    steps = (IMAGE / "install-python").read_text()
    installs = [line.strip() for line in steps.splitlines() if re.search(r" install .*--no-deps", line)]
    assert len(installs) == 5
    for line in installs:
        assert re.search(r'-r "\$locks/|"\$torch"|"\$project"', line), line
    assert "==" not in steps.replace("'^torch=='", "")
    assert "torch=$(grep '^torch==' \"$locks/$stack.txt\")" in steps
    named = set(re.findall(r"\$locks/(\w+)\.txt", steps))
    assert named == {"common", "java", "sbom"}
    assert all((ROOT / "scripts" / "lock" / f"{name}.txt").is_file() for name in named | {"cpu", "cuda"})
    (index,) = re.findall(r"--index-url (\S+)", steps)
    assert f"torch_cpu_index={index}\n" in (ROOT / "scripts" / "setup").read_text()
    for name in ("cpu", "cuda"):
        assert f"RUN /build/install-python {name}\n" in dockerfile()
        assert f"FROM serve AS {name}\n" in dockerfile()


def test_the_image_copies_what_there_is() -> None:
    copied = [words.split() for words in re.findall(r"^COPY (?!--from)(.*)$", dockerfile(), re.MULTILINE)]
    sources = {source for *from_, _ in copied for source in from_}
    assert {"pyproject.toml", "dlrm_factory", "handler", "scripts/lock"} <= sources
    for source in sources:
        assert (ROOT / source).exists(), source
    programs = re.findall(r"^RUN /build/(\S+)", dockerfile(), re.MULTILINE)
    assert set(programs) == {"install-debian", "install-python"}
    for program in [*programs, "proxy"]:
        assert (IMAGE / program).stat().st_mode & 0o111
        subprocess.run(["bash", "-n", str(IMAGE / program)], check=True, timeout=10)


def test_the_image_runs_as_no_root() -> None:
    assert re.findall(r"^USER (.*)$", dockerfile(), re.MULTILINE) == ["10001:10001"]
    user = (IMAGE / "install-debian").read_text()
    assert "groupadd --gid 10001 dlrm" in user
    assert "useradd --uid 10001 --gid dlrm" in user


# --- systemd ---


@pytest.mark.parametrize("name", ["dlrm.service", "dlrm-join.service"])
@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_units_leave_little_open(name: str) -> None:
    done = subprocess.run(
        [
            "systemd-analyze",
            "security",
            "--offline=true",
            "--no-pager",
            "--threshold=20",
            DEPLOY / "systemd" / name,
        ],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", ["dlrm.service", "dlrm-join.service"])
def test_units_stop_the_command_first(name: str) -> None:
    """`dlrm` gets SIGTERM alone, and has the time that it takes."""
    text = (DEPLOY / "systemd" / name).read_text()
    words = unit_command(name)
    drain = sum(int(words[words.index(o) + 1]) for o in ("--drain-delay", "--drain-seconds") if o in words)
    assert "\nKillMode=mixed\n" in text
    assert int(re.findall(r"^TimeoutStopSec=(\d+)$", text, re.MULTILINE)[0]) >= drain + 15


def test_every_file_is_in_the_document() -> None:
    document = (ROOT / "docs" / "deploy.md").read_text()
    inside = [path for path in DEPLOY.rglob("*") if path.is_file() and CHART not in path.parents]
    ours = [path for path in inside if path.parent.name in ("image", "helm", "kserve", "systemd")]
    assert len(ours) > 8
    assert [path.name for path in ours if path.name not in document] == []
