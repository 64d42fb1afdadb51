"""TorchServe's messages between frontend and worker, read and written faster than TorchServe's own code does.

Pinned to one version of TorchServe and to the very source of what is replaced; elsewhere all stays as it is.
"""

from handler.wire.install import KNOWN_VERSION, call_before_waits, install_reads, install_whole_messages
from handler.wire.read_ahead import CHUNK_BYTES, ReadBuffers

__all__ = [
    "CHUNK_BYTES",
    "KNOWN_VERSION",
    "ReadBuffers",
    "call_before_waits",
    "install_reads",
    "install_whole_messages",
]
