"""KServe's Open Inference Protocol, version 2."""
