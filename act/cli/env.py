"""``act-profile env``: versions and backends, for bug reports."""

from __future__ import annotations

import os
import platform
from typing import Any

from act.cli import console, options
from act.core.versions import versions

EXAMPLES = """
act-profile env
act-profile env --json > env.json
"""


def command(as_json: options.Json = False) -> None:
    """Print versions, devices, and the backend of each device, with the reasons why others are not used."""
    import torch

    from act_kernels import cuda, native
    from act_kernels.backends import ENVIRONMENT_VARIABLE

    device_types = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    result: dict[str, Any] = {
        "versions": versions(),
        "machine": platform.platform(),
        "threads": torch.get_num_threads(),
        "instruction_set": native.instruction_set() if native.LOAD_ERROR is None else None,
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "cuda_kernels": cuda.build(),
        "forced_backend": os.environ.get(ENVIRONMENT_VARIABLE),
        "backends": {device_type: _backends(device_type) for device_type in device_types},
    }
    if as_json:
        return console.print_json(result)
    built = result["cuda_kernels"]
    gpus = ", ".join(f"sm_{one}" for one in str(built["architectures"]).split(";"))
    kernels = built["missing"] or f"built with CUDA {built['toolkit']} for GPUs from {gpus} on"
    facts = [
        ["machine", result["machine"]],
        ["threads", result["threads"]],
        ["instruction set", result["instruction_set"] or "unknown, for the C++ kernels were not built"],
        ["GPUs", ", ".join(result["gpus"]) or "none that PyTorch sees"],
        ["CUDA kernels", kernels],
        ["backend forced", result["forced_backend"] or f"none ({ENVIRONMENT_VARIABLE} is not set)"],
    ]
    console.print_table("environment", ["", ""], [*map(list, result["versions"].items()), *facts])
    rows = [[device_type, *row] for device_type, names in result["backends"].items() for row in names.items()]
    console.print_table("backends", ["device", "backend", "state"], rows)


def _backends(device_type: str) -> dict[str, str]:
    from act_kernels.backends import BACKENDS, choose

    try:
        choice = choose(device_type)
    except RuntimeError as error:
        return {"forced": str(error)}
    states = {backend.name: "available" for backend in BACKENDS}
    states.update({name: f"not used: {reason}" for name, reason in choice.refused.items()})
    states[choice.backend.name] = "chosen (forced)" if choice.forced else "chosen"
    return states
