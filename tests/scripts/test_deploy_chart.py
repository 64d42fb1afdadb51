"""The chart of scripts/deploy, by helm and Kubernetes' schemas."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.deploy import (
    CHART,
    DEPLOY,
    EVERYTHING,
    KUBERNETES,
    LITTLE,
    NEEDED,
    check_schema,
    of_kind,
    render,
    run_helm,
)


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
