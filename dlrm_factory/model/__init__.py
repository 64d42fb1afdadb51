"""Model of a declaration: its modules, their sharding plan and their quantised tables."""
