"""The server against others, in one go: ``python -m dlrm_factory.benchmarks.compare``."""
