"""gRPC clients of TorchServe, made from the proto files that its package carries."""

from __future__ import annotations

import importlib
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import grpc
from grpc_tools import protoc

__all__ = ["Stubs", "bearer", "compile_protos", "stubs"]

_PROTOS = ("inference.proto", "management.proto", "open_inference_grpc.proto", "google/rpc/status.proto")


class Stubs:
    """Modules made of the proto files: messages and services of predictions, management and open inference."""

    def __init__(self, folder: Path) -> None:
        def load(name: str) -> ModuleType:
            return importlib.import_module(name)

        sys.path.insert(0, str(folder))
        try:
            self.inference, self.inference_rpc = load("inference_pb2"), load("inference_pb2_grpc")
            self.management, self.management_rpc = load("management_pb2"), load("management_pb2_grpc")
            self.open, self.open_rpc = load("open_inference_grpc_pb2"), load("open_inference_grpc_pb2_grpc")
        finally:
            sys.path.remove(str(folder))

    def predictions(self, channel: grpc.Channel) -> Any:
        return self.inference_rpc.InferenceAPIsServiceStub(channel)

    def models(self, channel: grpc.Channel) -> Any:
        return self.management_rpc.ManagementAPIsServiceStub(channel)

    def open_inference(self, channel: grpc.Channel) -> Any:
        return self.open_rpc.GRPCInferenceServiceStub(channel)


def compile_protos(folder: Path) -> None:
    """Python modules of TorchServe's proto files, in ``folder``, as docs/requests.md says."""
    (found,) = find_spec("ts").submodule_search_locations  # type: ignore[union-attr, misc]
    with zipfile.ZipFile(Path(found) / "frontend" / "model-server.jar") as jar:
        jar.extractall(folder, _PROTOS)
    google = str(Path(protoc.__file__).parent / "_proto")
    into = [f"--proto_path={folder}", f"--python_out={folder}", f"--grpc_python_out={folder}"]
    arguments = ["protoc", f"--proto_path={google}", *into, *_PROTOS[:3]]
    assert protoc.main(arguments) == 0
    # Of Google's own modules there is a package elsewhere; this one file suffices here.
    assert protoc.main(["protoc", f"--proto_path={google}", *into[:2], _PROTOS[3]]) == 0


@contextmanager
def stubs(address: str) -> Iterator[grpc.Channel]:
    """A channel to ``address``, HOST:PORT; a proxy of the environment is not asked."""
    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        yield channel


def bearer(token: str) -> tuple[tuple[str, str], ...]:
    """The metadata that carries ``token``."""
    return (("authorization", f"Bearer {token}"),)
