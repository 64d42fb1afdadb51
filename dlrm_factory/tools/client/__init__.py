"""Client of a served model. The client needs httpx and NumPy, not torch; `dlrm_factory.client` is its front door."""
