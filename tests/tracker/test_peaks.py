"""Peaks of GPUs, by the whole name."""

import pytest

from gpt.tracker.peaks import peak_flops


@pytest.mark.parametrize(
    "name, bf16, tf32, fp32",
    [
        ("NVIDIA H100 80GB HBM3", 989e12, 494e12, 67e12),
        ("NVIDIA H100 PCIe", 756e12, 378e12, 51e12),
        ("NVIDIA H100 NVL", 835e12, 417e12, 60e12),
        ("NVIDIA B200", 2.25e15, 1.1e15, 75e12),
        ("NVIDIA GB200", 2.5e15, 1.25e15, 80e12),
        ("NVIDIA GeForce RTX 4090", 165e12, 82.6e12, 82.6e12),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None, None, None),
        ("NVIDIA GeForce RTX 4090 D", None, None, None),
        ("cpu", None, None, None),
    ],
)
def test_a_gpu_has_the_peak_of_its_own_part(name, bf16, tf32, fp32):
    """Not that of a faster part whose name is in its own; one that is not known has none."""
    peaks = [peak_flops(precision, name) for precision in ("bf16", "fp16", "tf32", "fp32")]
    assert peaks == [bf16, bf16, tf32, fp32]
