"""Peak rates of GPUs, the reference of MFU: the share of the machine's floating-point operations that a model uses.

Only cards that somebody has looked up, by their exact names: cards of one family differ (an H100 on PCIe has three
quarters of one on SXM), and a part of one (MIG) is none of them. Of others there is no MFU rather than a wrong one.
"""

from collections.abc import Mapping

PEAK_FLOPS: Mapping[str, float] = {
    "A100-PCIE-40GB": 312e12,
    "A100-SXM4-40GB": 312e12,
    "A100-SXM4-80GB": 312e12,
    "A100 80GB PCIe": 312e12,
    "H100 80GB HBM3": 989e12,
    "H100 PCIe": 756e12,
    "H200": 989e12,
}
"""Dense bf16 operations per second, by what CUDA calls a device, without its maker."""


def peak_flops(device_name: str) -> float | None:
    """Return the peak FLOPS of a GPU; None if it is not in the table."""
    return PEAK_FLOPS.get(device_name.removeprefix("NVIDIA "))


def mfu_per_token(flops_per_token: float, *, peak: float, devices: int) -> float:
    """The share of the devices' peak that one token per second is."""
    return flops_per_token / (peak * devices)
