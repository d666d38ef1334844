"""GPUs by name: what their makers publish, and how much of it a forward reaches.

Rates are dense (without sparsity) and with sums in float32, as products of matrices in PyTorch have them; float32 is
computed as such, without TF32. A rate of None: the GPU has no units for that type.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from act.core.errors import ActError
from act.core.near import meant

EFFICIENCY = 0.4
"""The share of its published rate that a GPU is assumed to reach: Llama 3 was trained at 38 to 43 % of that of H100s in
bfloat16 (arXiv 2407.21783, table 4). An assumption, which ``act-profile plan`` replaces by a measurement where there is
a GPU."""

USABLE = 0.92
"""The share of a GPU's memory that tensors can fill, beside its context and what lies free in pieces."""

_H100 = "https://resources.nvidia.com/en-us-tensor-core/nvidia-tensor-core-gpu-datasheet"
_H200 = "https://www.nvidia.com/en-us/data-center/h200/"
_A100 = "https://www.nvidia.com/content/dam/en-zz/Solutions/Data-Center/a100/pdf/nvidia-a100-datasheet-nvidia-us-2188504-web.pdf"
_ADA = "https://images.nvidia.com/aem-dam/Solutions/geforce/ada/nvidia-ada-gpu-architecture.pdf"
_AMPERE = "https://www.nvidia.com/content/PDF/nvidia-ampere-ga-102-gpu-architecture-whitepaper-v2.pdf"
_MI300X = (
    "https://www.amd.com/content/dam/amd/en/documents/instinct-tech-docs/data-sheets/amd-instinct-mi300x-data-sheet.pdf"
)
_MI250X = "https://www.amd.com/en/products/accelerators/instinct/mi200/mi250x.html"


@dataclass(frozen=True)
class Accelerator:
    """One GPU, as it is sold.

    Attributes:
        title: what it is called.
        memory: GiB.
        bandwidth: of that memory, in GB per second.
        bfloat16, float16, float32: published TFLOP/s of products of matrices.
        source: where that is published.
    """

    title: str
    memory: float
    bandwidth: float
    bfloat16: float | None
    float16: float
    float32: float
    source: str

    def flops(self, dtype: str) -> float:
        """Floating-point operations per second that a forward is assumed to reach in a type.

        Raises:
            ActError: the GPU has no units for that type.

        >>> from act.profiling.accelerators import accelerator_named
        >>> f"{accelerator_named('h100').flops('bfloat16'):.3g}"
        '3.96e+14'
        """
        rates = {"bfloat16": self.bfloat16, "float16": self.float16, "float32": self.float32}
        published = rates.get(dtype, self.float32)
        if published is None:
            raise ActError(f"{self.title} has no units for {dtype}; plan for float16 or float32 (--dtype)")
        return EFFICIENCY * published * 1e12

    @property
    def usable(self) -> int:
        """Bytes of its memory that tensors can fill."""
        return math.floor(USABLE * self.memory * 2**30)


ACCELERATORS = {
    "h100": Accelerator("NVIDIA H100 SXM 80 GB", 80, 3350, 989, 989, 67, _H100),
    "h100-pcie": Accelerator("NVIDIA H100 PCIe 80 GB", 80, 2000, 756, 756, 51, _H100),
    "h200": Accelerator("NVIDIA H200 SXM 141 GB", 141, 4800, 989, 989, 67, _H200),
    "b200": Accelerator(
        "NVIDIA B200 180 GB", 180, 8000, 2250, 2250, 75, "https://www.nvidia.com/en-us/data-center/dgx-b200/"
    ),
    "a100": Accelerator("NVIDIA A100 SXM 80 GB", 80, 2039, 312, 312, 19.5, _A100),
    "a100-40": Accelerator("NVIDIA A100 SXM 40 GB", 40, 1555, 312, 312, 19.5, _A100),
    "l40s": Accelerator("NVIDIA L40S 48 GB", 48, 864, 362, 362, 91.6, "https://www.nvidia.com/en-us/data-center/l40s/"),
    "l4": Accelerator("NVIDIA L4 24 GB", 24, 300, 121, 121, 30.3, "https://www.nvidia.com/en-us/data-center/l4/"),
    "a10": Accelerator(
        "NVIDIA A10 24 GB", 24, 600, 125, 125, 31.2, "https://www.nvidia.com/en-us/data-center/products/a10-gpu/"
    ),
    "4090": Accelerator("NVIDIA GeForce RTX 4090 24 GB", 24, 1008, 165.2, 165.2, 82.6, _ADA),
    "3090": Accelerator("NVIDIA GeForce RTX 3090 24 GB", 24, 936, 71, 71, 35.6, _AMPERE),
    "v100": Accelerator(
        "NVIDIA V100 SXM2 32 GB", 32, 900, None, 125, 15.7, "https://www.nvidia.com/en-us/data-center/v100/"
    ),
    "t4": Accelerator("NVIDIA T4 16 GB", 16, 320, None, 65, 8.1, "https://www.nvidia.com/en-us/data-center/tesla-t4/"),
    "mi300x": Accelerator("AMD Instinct MI300X 192 GB", 192, 5300, 1307.4, 1307.4, 163.4, _MI300X),
    "mi250x": Accelerator("AMD Instinct MI250X 128 GB", 128, 3277, 383, 383, 47.9, _MI250X),
}


def accelerator_named(name: str) -> Accelerator:
    """The GPU of that name; raises :class:`ActError`, which lists all, for another one."""
    found = ACCELERATORS.get(name.lower().removeprefix("rtx").strip(" -"))
    if found is None:
        raise ActError(
            f"no figures are known of the GPU {name!r}; expected one of {', '.join(ACCELERATORS)}, or its rate "
            f"(--gpu-tflops){meant(name, ACCELERATORS)}"
        )
    return found
