"""Shape of TorchServe's own DLRM example: the reference reader and the fast one."""
