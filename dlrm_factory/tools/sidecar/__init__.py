"""The process beside a server: answers probes, scales workers, removes versions that were kept; ends with the server.

A small parent starts the process again whenever it dies, until the server has ended::

    dlrm serve ── launcher (ends at once) ── supervisor ── sidecar: GET /ready, /live, /metrics
"""
