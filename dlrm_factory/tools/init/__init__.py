"""Data → a first declaration: what each column is, and why."""

from dlrm_factory.tools.init.draft import Draft, draft_declaration

__all__ = ["Draft", "draft_declaration"]
