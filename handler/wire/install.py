"""Puts the faster reads and writes in place of TorchServe's, where these are known."""

from __future__ import annotations

import hashlib
import inspect
import logging
from types import ModuleType

from handler.wire.answers import answer_writer
from handler.wire.read_ahead import CHUNK_BYTES, Observers, ReadBuffers
from handler.wire.requests import RequestReads, unpacker

__all__ = ["KNOWN_VERSION", "install_reads", "install_whole_messages", "observers_of"]

logger = logging.getLogger(__name__)

KNOWN_VERSION = "0.12.0"

# SHA-256 of TorchServe's sources: what somebody has changed keeps its own code.
_KNOWN_PROTOCOL = "83e82dc62b4a95a362efe4518786c6b389b895b85acaf37721aaff042ec9989a"
_KNOWN_SERVICE = "f18259269551299d25f4e9d2bdc916c8308c10233501df08196cc7cfa2d0d291"
_KNOWN_CONTEXT = "57eee89d1f8bf8a21fd89c62a322077a31c7aa01df8e0fc28a7c0dc6327bcf08"


def install_reads(protocol: ModuleType, version: str) -> bool:
    """Let ``protocol``, TorchServe's `ts.protocol.otf_message_handler`, read many fields at a time.

    TorchServe 0.12.0 reads each field by a `recv` of its own: some 45 system calls a request. True if the reads are
    in place. Another version, or another source, keeps its plain reads, with one log line. Call it between two
    messages.
    """
    if _buffers_of(protocol) is not None:
        return True
    reason = _difference(protocol, version, _KNOWN_PROTOCOL)
    if reason:
        logger.warning("Requests are read field by field, which is slower: %s", reason)
        return False
    buffers = ReadBuffers()
    vars(protocol).update(_retrieve_buffer=buffers.read, _retrieve_int=buffers.read_int)
    logger.info("Requests are read %d KiB at a time", CHUNK_BYTES // 1024)
    return True


def install_whole_messages(
    protocol: ModuleType, service: ModuleType, context: ModuleType, version: str
) -> bool:
    """After `install_reads`: headers that come again are read once, and a batch is answered in one piece.

    Args:
        service, context: TorchServe's `ts.service` and `ts.context`.
    """
    buffers = _buffers_of(protocol)
    if buffers is None:
        return False
    if isinstance(getattr(protocol._retrieve_inference_msg, "__self__", None), RequestReads):
        return True
    reason = _difference(service, version, _KNOWN_SERVICE) or _difference(context, version, _KNOWN_CONTEXT)
    if reason:
        logger.warning("Headers are read and answers written one by one, which is slower: %s", reason)
        return False
    reads = RequestReads(buffers, protocol._retrieve_input_data)
    vars(protocol).update(_retrieve_inference_msg=reads.read_batch)
    service.Service.retrieve_data_for_inference = staticmethod(unpacker(service.RequestProcessor))
    vars(service).update(
        create_predict_response=answer_writer(service.create_predict_response, buffers.observers)
    )
    return True


def observers_of(protocol: ModuleType) -> Observers | None:
    """Observers of waits and reads, after `install_reads`, and of writes, after `install_whole_messages`.

    None where the reads or the writes are TorchServe's own.
    """
    buffers = _buffers_of(protocol)
    whole = isinstance(getattr(protocol._retrieve_inference_msg, "__self__", None), RequestReads)
    return buffers.observers if buffers is not None and whole else None


def _buffers_of(protocol: ModuleType) -> ReadBuffers | None:
    owner = getattr(getattr(protocol, "_retrieve_buffer", None), "__self__", None)
    return owner if isinstance(owner, ReadBuffers) else None


def _difference(module: ModuleType, version: str, known: str) -> str:
    """Difference of ``module`` to the one these functions were made for; empty if there is none."""
    if version != KNOWN_VERSION:
        return f"TorchServe is {version}, and buffered reads are made for {KNOWN_VERSION}"
    try:
        source = inspect.getsource(module)
    except (OSError, TypeError):
        return f"{module.__name__} has no source to check"
    if hashlib.sha256(source.encode()).hexdigest() != known:
        return f"{module.__name__} is not as TorchServe {KNOWN_VERSION} has it"
    return ""
