"""Client of a served model. It needs httpx and NumPy, not torch; `dlrm_factory.client` is its front door."""
