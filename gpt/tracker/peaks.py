"""Peak speeds of GPUs, by which a run's speed is told as a part of what its device can do (MFU)."""

# Dense peak in FLOP/s as (bf16 and fp16, tf32, fp32), by the name that torch gives the GPU: parts of one chip differ.
# From NVIDIA's data sheet of each part, with half of the figures that assume sparsity. The RTX 4090's, for sums in
# fp32, are from "NVIDIA Ada GPU Architecture".
PEAK_FLOPS = {
    "NVIDIA GB200": (2.5e15, 1.25e15, 80e12),
    "NVIDIA B200": (2.25e15, 1.1e15, 75e12),
    "NVIDIA H200": (989e12, 494e12, 67e12),
    "NVIDIA H200 NVL": (835e12, 417e12, 60e12),
    "NVIDIA GH200 480GB": (989e12, 494e12, 67e12),
    "NVIDIA H100 80GB HBM3": (989e12, 494e12, 67e12),  # SXM
    "NVIDIA H100 NVL": (835e12, 417e12, 60e12),
    "NVIDIA H100 PCIe": (756e12, 378e12, 51e12),
    "NVIDIA A100-SXM4-40GB": (312e12, 156e12, 19.5e12),
    "NVIDIA A100-SXM4-80GB": (312e12, 156e12, 19.5e12),
    "NVIDIA A100-PCIE-40GB": (312e12, 156e12, 19.5e12),
    "NVIDIA A100 80GB PCIe": (312e12, 156e12, 19.5e12),
    "NVIDIA L40S": (362e12, 183e12, 91.6e12),
    "NVIDIA GeForce RTX 4090": (165e12, 82.6e12, 82.6e12),
}


def peak_flops(precision: str, device_name: str) -> float | None:
    """Dense peak FLOP/s of a device at this precision, or None where it is not known."""
    if device_name not in PEAK_FLOPS:
        return None
    half, tf32, fp32 = PEAK_FLOPS[device_name]
    return {"tf32": tf32, "fp32": fp32}.get(precision, half)
