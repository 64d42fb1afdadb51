"""Requests as TorchServe hands them over → one batch → one answer a request. Packed in every archive."""
