"""``act-profile plan``: what a run will cover, and how each site is read."""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Any

import torch
import typer

from act.channels import ChannelSpace
from act.cli import console
from act.loading import load_model
from act.moments import Moments
from act.placement import input_device, run_devices
from act.taps import taps


def command(
    model: Annotated[str, typer.Option(help="Folder in Hugging Face format, or hub id.")],
    exclude: console.Exclude = None,
    fused: console.Fused = True,
    device: console.Device = "auto",
    dtype: console.Dtype = "auto",
    as_json: console.Json = False,
) -> None:
    """Show the sites and channels of a model, the kernel that reads each, and the parameters that no site covers."""
    console.quiet_transformers()
    loaded = load_model(model, dtype=dtype, device=device)
    space = ChannelSpace.from_model(loaded)
    tokens = torch.ones((1, 4), dtype=torch.long, device=input_device(loaded))
    moments = Moments(space, device=run_devices(loaded, (site.name for site in space)))
    with (
        torch.inference_mode(),
        taps(loaded, moments, fused=fused, exclude=exclude or ()) as tapped,
    ):
        tapped.forward({"input_ids": tokens, "attention_mask": tokens}, tokens.bool().cpu())
        paths = {site.name: tapped.paths.get(site.name, "not measured") for site in space}
    result: dict[str, Any] = {
        "channels": len(space),
        "sites": [
            {
                "name": site.name,
                "kind": site.kind,
                "channels": site.width,
                "path": paths[site.name],
                "tied_to": site.tied_to,
            }
            for site in space
        ],
        "uncovered": list(space.uncovered),
    }
    if as_json:
        return console.print_json(result)
    groups: Counter[tuple[str, str]] = Counter()
    channels: Counter[tuple[str, str]] = Counter()
    for site in space:
        group = site.kind, paths[site.name]
        groups[group] += 1
        channels[group] += site.width
    rows = [[kind, path, f"{sites:,}", f"{channels[kind, path]:,}"] for (kind, path), sites in groups.items()]
    console.print_table(f"{model}: {len(space):,} channels", ["module kind", "read by", "sites", "channels"], rows)
    for name in space.uncovered:
        print(f"no site covers {name}: it is neither measured nor transferred")
