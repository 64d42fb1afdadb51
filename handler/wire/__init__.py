"""TorchServe's messages between frontend and worker, read and written faster than TorchServe's own code does.

Pinned to one version of TorchServe and to the very source of what is replaced; elsewhere all stays as it is.
"""

from handler.wire.answers import error_tail
from handler.wire.install import KNOWN_VERSION, install_reads, install_whole_messages, observers_of
from handler.wire.read_ahead import CHUNK_BYTES, Observers, ReadBuffers

__all__ = [
    "CHUNK_BYTES",
    "KNOWN_VERSION",
    "Observers",
    "ReadBuffers",
    "error_tail",
    "install_reads",
    "install_whole_messages",
    "observers_of",
]
