"""The package compiles on the oldest and newest Python that it is for."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted(path for folder in ("kt_ray", "search_spaces", "cluster") for path in (ROOT / folder).rglob("*.py"))
REMOVED = {"asynchat", "asyncore", "cgi", "cgitb", "crypt", "distutils", "imp", "pipes", "smtpd", "telnetlib", "uu"}
NEW_IN_311 = {"tomllib"}


def imported(tree: ast.AST) -> set[str]:
    """Return the top-level modules that a file imports."""
    names = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module]
    return {name.partition(".")[0] for name in names}


@pytest.mark.parametrize("version", [(3, 10), (3, min(13, sys.version_info.minor))], ids=["oldest", "newest"])
def test_every_file_is_of_the_grammar(version: tuple[int, int]) -> None:
    for path in FILES:
        ast.parse(path.read_text(encoding="utf-8"), str(path), feature_version=version)


def test_no_file_imports_what_a_version_does_not_have() -> None:
    found = {path.name: imported(ast.parse(path.read_text())) & (REMOVED | NEW_IN_311) for path in FILES}
    assert {name: modules for name, modules in found.items() if modules} == {}
