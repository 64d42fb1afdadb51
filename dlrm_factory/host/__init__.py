"""Memory, caches and mapped files that the processes of one host share."""
