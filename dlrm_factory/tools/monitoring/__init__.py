"""Metrics of a running server's workers: read, added up, compared with training, exported and shown."""

from dlrm_factory.tools.monitoring.exporter import Exporter, exporter_of
from dlrm_factory.tools.monitoring.labels import JoinedLabels, join_labels
from dlrm_factory.tools.monitoring.status import Status, read_status

__all__ = ["Exporter", "JoinedLabels", "Status", "exporter_of", "join_labels", "read_status"]
