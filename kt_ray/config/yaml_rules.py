"""YAML as study files are written in it: scalars by the rules of YAML 1.2, bounded in size, every fault a YAMLError.

PyYAML reads YAML 1.1, in which `1:30` is 90, `010` is 8, `no` is false and `1e-3` is text (YAML 1.2.2, section 10.3.2).
"""

from __future__ import annotations

import re
from typing import Any

import yaml
from yaml.constructor import ConstructorError
from yaml.nodes import MappingNode, Node, ScalarNode

ENTRIES = 5_000  # of one mapping, those that `<<` merges into it included
LONGEST = 100  # characters of a number

SCALARS = (
    ("tag:yaml.org,2002:bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("tag:yaml.org,2002:int", r"[-+]?[0-9][0-9_]*|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    (
        "tag:yaml.org,2002:float",
        r"[-+]?(?:\.[0-9]+|[0-9][0-9_]*(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+0123456789.",
    ),
    ("tag:yaml.org,2002:null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("tag:yaml.org,2002:merge", r"<<", "<"),
)


class StudyLoader(yaml.SafeLoader):
    """A safe loader by these rules: raises YAMLError for any wrong value, RecursionError if nested too deeply."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012

    def construct_object(self, node: Node, deep: bool = False) -> Any:
        """Return what `node` stands for; whatever its constructor raises becomes a fault of its line."""
        try:
            return super().construct_object(node, deep)
        except (ValueError, TypeError, OverflowError, KeyError, IndexError, AttributeError) as error:
            raise ConstructorError(None, None, f"{node.tag} cannot be read ({error})", node.start_mark) from None

    def flatten_mapping(self, node: MappingNode) -> None:
        """Merge what `<<` names, up to a bound: few lines of merged aliases can stand for billions of entries."""
        super().flatten_mapping(node)
        if len(node.value) > ENTRIES:
            raise ConstructorError(None, None, f"a mapping of more than {ENTRIES:,} entries", node.start_mark)

    def construct_yaml_int(self, node: ScalarNode) -> int:
        """Return a decimal, `0o` or `0x` integer; leading zeros mean nothing."""
        text = self._number(node)
        sign, digits = (-1 if text.startswith("-") else 1), text.lstrip("+-")
        base = {"0o": 8, "0x": 16}.get(digits[:2], 10)
        return sign * int(digits[2:] if base != 10 else digits, base)

    def construct_yaml_float(self, node: ScalarNode) -> float:
        """Return a decimal number, infinity or NaN."""
        return float(self._number(node).lower().replace(".inf", "inf").replace(".nan", "nan"))

    def _number(self, node: ScalarNode) -> str:
        text = str(self.construct_scalar(node)).replace("_", "")
        if len(text) > LONGEST:
            raise ValueError(f"a number of {len(text):,} characters")
        return text


for _tag, _pattern, _first in SCALARS:
    StudyLoader.add_implicit_resolver(_tag, re.compile(rf"^(?:{_pattern})$"), list(_first))
for _name in ("int", "float"):
    StudyLoader.add_constructor(f"tag:yaml.org,2002:{_name}", getattr(StudyLoader, f"construct_yaml_{_name}"))


def parse(text: str) -> Any:
    """Return what the YAML `text` stands for. Raises yaml.YAMLError, RecursionError if it is nested too deeply."""
    return yaml.load(text, StudyLoader)
