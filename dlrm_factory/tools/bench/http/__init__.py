"""A load generator for a live endpoint.

Generators are processes of their own (`generator`), so that neither the progress display nor the percentiles of
the caller delay a request. Modules are imported one by one: a generator starts with the standard library and msgspec.
"""
