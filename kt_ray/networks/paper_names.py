"""The names of parameters in the paper's published code beside ours (arXiv 2401.05772).

Its whole networks are sequences of three modules, so their names begin with `0.`, `1.` and `2.`; its zoos have a file
for each module, without these.
"""

from __future__ import annotations

PARTS = {"stem": "0", "block": "1", "head": "2"}
_LAYERS = {
    "stem": {},
    "block": {
        "linear1": "fc1_c",
        "linear2": "fc2_c",
        "query": "proj_q",
        "key": "proj_k",
        "value": "proj_v",
        "projection": "proj",
    },
    "head": {"conv": "downsample", "linear": "fc"},
}


def layer_name(part: str, name: str) -> str:
    """Return the paper's name of the parameter `name` of `part` (stem, block or head): `fc.bias` for `linear.bias`."""
    layer, _, rest = name.partition(".")
    return f"{_LAYERS[part].get(layer, layer)}.{rest}"


def network_name(name: str) -> str:
    """Return the paper's name of a parameter of a whole network: `2.fc.bias` for `head.linear.bias`.

    Names of other networks are returned as they are.
    """
    part, _, rest = name.partition(".")
    return f"{PARTS[part]}.{layer_name(part, rest)}" if part in PARTS else name
