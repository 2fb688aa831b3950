"""One self-contained page that draws a net with its shortcuts and shows how its gradient divides.

`render` puts the data into the template beside this file; the page asks no network for anything.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from minires import nn
from minires.models import ResNet, weighted_layers
from minires.models.registry import Shape

SHORTCUTS = {
    "identity": "identity",
    "padding": "zeros for the added channels",
    "projection": "projection",
    "none": "none",
}
"""What `anatomy.joins` calls a shortcut, in words."""


def net_parts(model: ResNet, image_shape: Shape) -> list[dict[str, Any]]:
    """The stages of a net with their blocks, as the page draws them.

    image_shape: (C, H, W) of the images it is used on. Raises ValueError if they do not fit.
    """
    layers = weighted_layers(model, image_shape)
    stages: list[dict[str, Any]] = []
    for name, block in model.named_blocks():
        stage = name.partition(".")[0]
        if not stages or stages[-1]["name"] != stage:
            stages.append({"name": stage, "blocks": []})
        inside = [la for la in layers if la.name.startswith(name + ".") and not la.shortcut]
        stages[-1]["blocks"].append(
            {
                "name": name,
                "kind": type(block).__name__,
                "stride": block.stride,
                "input": block.in_channels,
                "output": list(inside[-1].output_shape),
                "layers": [_layer(model.get_submodule(la.name)) for la in inside],
            }
        )
    return stages


def _layer(module: nn.Module) -> str:
    if not isinstance(module, nn.Conv2d):
        return type(module).__name__
    height, width = module.kernel_size
    stride = "" if module.stride[0] == 1 else f", stride {module.stride[0]}"
    return f"{height}x{width}, {module.out_channels}{stride}"


def render(data: Mapping[str, Any]) -> str:
    """The page, for a net and what was recorded of it.

    data: `title`, `facts` (lines of text), `stages` (see `net_parts`), `shortcuts` (one word per
    block, see `SHORTCUTS`) and `moments`: a list of dicts with `epoch`, `text` (a line about it)
    and, for each number of a join, a list with one value per block.

    Raises ValueError if a number is not finite.
    """
    folder = files(__package__)
    # A "</script>" in some name must not end the element that holds the data.
    text = json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    page = folder.joinpath("page.html").read_text(encoding="utf-8")
    for name, content in (
        ("/* page.css */", folder.joinpath("page.css").read_text(encoding="utf-8")),
        ("/* page.js */", folder.joinpath("page.js").read_text(encoding="utf-8")),
        ("/* data */", text),
    ):
        page = page.replace(name, content, 1)
    return page
