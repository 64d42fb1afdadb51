"""Writes a CycloneDX SBOM of the image: Python's packages by cyclonedx-py, Debian's by dpkg-query, checked by schema.

Usage: ``python sbom.py ENVIRONMENT LISTING OUTPUT``; LISTING has status, name, version and architecture between tabs.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packageurl import PackageURL


def python_packages(environment: Path) -> Bom:
    """The SBOM that cyclonedx-py makes of a virtual environment."""
    done = subprocess.run(
        [sys.executable, "-m", "cyclonedx_py", "environment", "--output-reproducible", str(environment)],
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    return Bom.from_json(json.loads(done.stdout))


def debian_packages(listing: Path) -> list[Component]:
    """One component for each package that is installed by dpkg's ``listing``."""
    release = dict(
        line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line
    )
    distro = f"{release['ID']}-{release['VERSION_ID']}".replace('"', "")
    components = []
    for line in listing.read_text(encoding="utf-8").splitlines():
        status, name, version, architecture = line.split("\t")
        if status.strip() == "ii":
            url = PackageURL("deb", "debian", name, version, {"arch": architecture, "distro": distro})
            components.append(
                Component(
                    type=ComponentType.LIBRARY, name=name, version=version, purl=url, bom_ref=url.to_string()
                )
            )
    return components


def main(environment: Path, listing: Path, output: Path) -> None:
    bom = python_packages(environment)
    python = len(bom.components)
    debian = debian_packages(listing)
    bom.components.update(debian)
    text = JsonV1Dot6(bom).output_as_string(indent=1)
    error = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
    if error:
        sys.exit(f"sbom: not a CycloneDX document: {error}")
    output.write_text(text + "\n", encoding="utf-8")
    print(f"sbom: {python} packages of Python, {len(debian)} of Debian: {output}")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
