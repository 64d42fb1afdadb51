"""Columns by name: the reference reader and the fast one."""
