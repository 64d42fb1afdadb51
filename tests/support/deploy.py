"""Chart of scripts/deploy: values for it, helm run on it, and Kubernetes' own schemas."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import yaml

from support.checkout import ROOT

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
    """Documents of the chart with ``values``."""
    done = run_helm(helm, "template", "release", "--namespace", "models", values=values)
    assert done.returncode == 0, done.stderr
    return [document for document in yaml.safe_load_all(done.stdout) if document]


def of_kind(documents: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    """The one of ``documents`` that is of ``kind``."""
    (found,) = [document for document in documents if document["kind"] == kind]
    return found


def check_schema(document: dict[str, Any], version: str) -> None:
    """Raise where Kubernetes' own schema does not have ``document``, fields that it does not know included."""
    kubernetes_validate.validate(document, version, strict=True)
