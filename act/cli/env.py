"""``act-profile env``: versions, machine and backends, for bug reports."""

from __future__ import annotations

import os
import platform
import sys
from typing import TYPE_CHECKING, Any

import typer

from act.cli import console, options
from act.core.errors import ActError
from act.core.extras import EXTRAS
from act.core.units import size
from act.core.versions import OPTIONAL, installed, versions

if TYPE_CHECKING:
    from act.core.machine import Folder

EXAMPLES = """
act-profile env
act-profile env --json > env.json
ACT_KERNELS_BACKEND=reference act-profile env
"""
MORE = (
    "datasets",
    "huggingface-hub",
    "pyarrow",
    *(name for each in EXTRAS.values() for name in each.packages),
    *OPTIONAL,
)


def command(as_json: options.Json = False) -> None:
    """Print versions, machine, caches, extras, and the backend of each device, with why others are not used.

    The exit code is 2 where a setting of the environment cannot be used, such as an ACT_KERNELS_BACKEND that runs on no
    device.
    """
    import torch

    from act.core.machine import cores, free_memory, processor, whole_memory
    from act_kernels import cuda, native
    from act_kernels.backends import ENVIRONMENT_VARIABLE

    device_types = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    backends = {device_type: _backends(device_type) for device_type in device_types}
    caches, error = _caches()
    unusable = [states["forced"] for states in backends.values() if "forced" in states]
    if len(unusable) == len(backends):
        error = unusable[0]
    result: dict[str, Any] = {
        "versions": versions(),
        "packages": installed(MORE),
        "extras": {
            name: {"purpose": extra.purpose, "packages": list(extra.packages), "installed": _has(extra.packages)}
            for name, extra in EXTRAS.items()
        },
        "machine": platform.platform(),
        "processor": processor(),
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "memory": {"total": whole_memory(), "available": free_memory()},
        "caches": caches,
        "instruction_set": native.instruction_set() if native.LOAD_ERROR is None else None,
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "cuda_kernels": cuda.build(),
        "forced_backend": os.environ.get(ENVIRONMENT_VARIABLE),
        "backends": backends,
        **({"error": error, "exit_code": 2} if error else {}),
    }
    if as_json:
        console.print_json(result)
    else:
        _print(result, ENVIRONMENT_VARIABLE)
    if error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(2)


def _print(result: dict[str, Any], variable: str) -> None:
    built, memory = result["cuda_kernels"], result["memory"]
    gpus = ", ".join(f"sm_{one}" for one in str(built["architectures"]).split(";"))
    kernels = built["missing"] or f"built with CUDA {built['toolkit']} for GPUs from {gpus} on"
    cache = {name: _place(one) for name, one in result["caches"].items()}
    facts = [
        ["machine", result["machine"]],
        [
            "processor",
            f"{result['processor'] or 'unknown'}, {result['instruction_set'] or 'C++ kernels were not built'}",
        ],
        ["cores, threads", f"{result['cores']} that may be used, {result['threads']} that PyTorch uses"],
        ["memory", f"{size(memory['available'])} free of {size(memory['total'])}"],
        ["GPUs", ", ".join(result["gpus"]) or "none that PyTorch sees"],
        ["CUDA kernels", kernels],
        ["backend forced", result["forced_backend"] or f"none ({variable} is not set)"],
        *([f"cache of {name}", place] for name, place in cache.items()),
    ]
    console.print_table("Machine", ["", ""], facts)
    packages = {**result["versions"], **result["packages"]}
    console.print_table("Packages", ["", ""], [*map(list, packages.items())])
    rows = [
        [name, extra["purpose"], "installed" if extra["installed"] else f"pip install 'act-profile[{name}]'"]
        for name, extra in result["extras"].items()
    ]
    console.print_table("Extras", ["extra", "for", "state"], rows)
    rows = [[device_type, *row] for device_type, names in result["backends"].items() for row in names.items()]
    console.print_table("Backends", ["device", "backend", "state"], rows)


def _place(cache: Folder | None) -> str:
    """A cache in words."""
    if cache is None:
        return "off"
    free = "free space unknown" if cache["free"] is None else f"{size(cache['free'])} free"
    home = os.path.expanduser("~")
    inside = home != "/" and cache["folder"].startswith(f"{home}/")
    folder = f"~{cache['folder'][len(home) :]}" if inside else cache["folder"]
    return f"{folder}: {free}{'' if cache['writable'] else ', but no file can be made there'}"


def _caches() -> tuple[dict[str, Folder | None], str | None]:
    """Where models and fingerprints are kept, None where nothing is; and why a setting of these cannot be used."""
    from pathlib import Path

    from huggingface_hub.constants import HF_HUB_CACHE

    from act.core.machine import room
    from act.editing.remembered import fingerprint_cache

    hub = room(Path(HF_HUB_CACHE))
    try:
        own = fingerprint_cache()
    except ActError as error:
        return {"the hub": hub}, str(error)
    return {"the hub": hub, "fingerprints": room(own.folder) if own else None}, None


def _has(packages: tuple[str, ...]) -> bool:
    return len(installed(packages)) == len(packages)


def _backends(device_type: str) -> dict[str, str]:
    from act_kernels.backends import BACKENDS, choose

    try:
        choice = choose(device_type)
    except RuntimeError as error:
        return {"forced": str(error)}
    reasons = {one.name: one.refusal(device_type) for one in BACKENDS} if choice.forced else choice.refused
    states = {one.name: f"not used: {reason}" if (reason := reasons.get(one.name)) else "available" for one in BACKENDS}
    states[choice.backend.name] = "chosen (forced)" if choice.forced else "chosen"
    return states
