"""The local world: one run on this machine, through TorchX's local scheduler and the same core as on a cluster."""
