"""What has to be the same on all hosts of a group."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import xxhash

from dlrm_factory.weights.seal import installed_versions, read_seal

__all__ = ["ModelIdentity"]

_PACKAGES = ("torch", "torchrec", "fbgemm-gpu", "fbgemm-gpu-cpu")
# Says how many ranks a worker has: the leader alone decides that.
_NOT_OF_THE_MODEL = "model-config.yaml"


@dataclass(frozen=True, kw_only=True)
class ModelIdentity:
    """A model as one host has it.

    Fields:
        model: its name.
        seal: digest of the files that its seal lists: weights, declaration and code.
        versions: of the installed packages that scores depend on.
    """

    model: str
    seal: str
    versions: Mapping[str, str]

    @classmethod
    def of(cls, folder: Path, model: str) -> ModelIdentity:
        """The identity of the unpacked archive in ``folder``. WeightsError if its seal is missing or damaged."""
        files = {name: file for name, file in read_seal(folder).files.items() if name != _NOT_OF_THE_MODEL}
        digest = xxhash.xxh3_128_hexdigest(msgspec.json.encode(dict(sorted(files.items()))))
        installed = installed_versions()
        versions = {name: installed[name] for name in _PACKAGES if name in installed}
        return cls(model=model, seal=digest, versions=versions)

    @classmethod
    def from_message(cls, message: Mapping[str, Any]) -> ModelIdentity:
        """What `to_message` gave on another host."""
        versions = message.get("versions")
        return cls(
            model=str(message.get("model")),
            seal=str(message.get("seal")),
            versions={str(name): str(found) for name, found in versions.items()}
            if isinstance(versions, dict)
            else {},
        )

    def to_message(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {"model": self.model, "seal": self.seal, "versions": dict(self.versions)}

    def differences(self, host: ModelIdentity) -> list[str]:
        """What ``host`` has otherwise than the leader, ``self``, by name, and what to do."""
        found = []
        if host.model != self.model:
            found.append(
                f'model: the leader serves "{self.model}", this host has "{host.model}"; see --models'
            )
        elif host.seal != self.seal:
            found.append(
                f"seal: the leader's archive is {self.seal[:12]}, this host's {host.seal[:12]}; copy the leader's "
                "archive here"
            )
        for name in _PACKAGES:
            leads, joins = self.versions.get(name), host.versions.get(name)
            if leads != joins:
                found.append(
                    f"{name}: the leader has {leads or 'none'}, this host {joins or 'none'}; install the same"
                )
        return found
