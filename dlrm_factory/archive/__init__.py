"""Checkpoint → staged folder → self-contained archive."""

from dlrm_factory.archive.manifest import check_names
from dlrm_factory.archive.reading import (
    ArchiveListing,
    read_archive_declaration,
    read_archive_listing,
    unpacked_weights,
)
from dlrm_factory.archive.sealing import ArchiveFormat, archive_model
from dlrm_factory.archive.staging import archiver_command, stage

__all__ = [
    "ArchiveFormat",
    "ArchiveListing",
    "archive_model",
    "archiver_command",
    "check_names",
    "read_archive_declaration",
    "read_archive_listing",
    "stage",
    "unpacked_weights",
]
