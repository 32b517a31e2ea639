"""Hashes of the code that decides a trial's numbers, one for each function, wherever the files are.

Comments, docstrings, layout, imports and the wording of errors do not count: only what Python would execute.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

DIGITS = 8  # hexadecimal digits of a function's hash
NAMED = 5  # functions that a message names


def function_hashes(root: Path, start: str, folders: Iterable[str]) -> dict[str, str]:
    """Return the hash of every function, method and statement by its name, such as `Mixer.forward`.

    They are of the module `start`, such as `translation.task`, of the package in `root`, and of what it imports from
    the files and folders `folders` there.
    """
    found: dict[str, list[str]] = {}
    for tree in _imported(root, start, tuple(folders)):
        for name, code in _statements(tree.body, ""):
            found.setdefault(name, []).append(code)
    return {name: _digest(sorted(codes))[:DIGITS] for name, codes in sorted(found.items())}


def fingerprint(hashes: Mapping[str, str]) -> str:
    """Return one hash of all of `hashes`."""
    return _digest(f"{name} {code}" for name, code in sorted(hashes.items()))[:12]


def differences(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    """Return which functions differ, in words."""
    kinds = {
        "changed": [name for name in now if name in before and before[name] != now[name]],
        "new": [name for name in now if name not in before],
        "removed": [name for name in before if name not in now],
    }
    parts = []
    for kind, names in kinds.items():
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        if names:
            parts.append(f"{kind}: {', '.join(names[:NAMED])}{more}")
    return "; ".join(parts)


def _imported(root: Path, start: str, folders: tuple[str, ...]) -> Iterator[ast.Module]:
    """Yield the syntax tree of `start` and of every module in `folders` that it imports, directly or not."""
    waiting, seen = [start], {start}
    while waiting:
        name = waiting.pop()
        file = _file(root, name)
        if file is None:
            continue
        tree = ast.parse(file.read_text(encoding="utf-8"))
        yield tree
        for imported in _imports(tree, root.name, f"{root.name}.{name}", file.name == "__init__.py"):
            if imported not in seen and _within(imported, folders):
                seen.add(imported)
                waiting.append(imported)


def _file(root: Path, name: str) -> Path | None:
    path = root.joinpath(*name.split("."))
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


def _within(name: str, folders: tuple[str, ...]) -> bool:
    path = name.replace(".", "/")
    return any(path == folder.removesuffix(".py") or path.startswith(f"{folder}/") for folder in folders)


def _imports(tree: ast.Module, package: str, module: str, is_package: bool) -> Iterator[str]:
    """Yield the modules of `package` that a module may import, relative to it; names of functions do no harm."""
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = module.split(".")[: len(module.split(".")) - node.level + is_package]
                base = ".".join([*above, *filter(None, [node.module])])
            names = [base, *(f"{base}.{alias.name}" for alias in node.names)]
        for name in names:
            parts = name.split(".")
            if parts[0] == package:  # importing a module runs the packages around it
                yield from (".".join(parts[1:end]) for end in range(2, len(parts) + 1))


def _statements(body: list[ast.stmt], prefix: str) -> Iterator[tuple[str, str]]:
    """Yield name and code of the functions, methods and other statements of a module or class."""
    for node in body:
        if isinstance(node, ast.ClassDef):
            head = ast.ClassDef(
                name=node.name, bases=node.bases, keywords=node.keywords, body=[], decorator_list=node.decorator_list
            )
            yield f"{prefix}{node.name}", _code(head)
            yield from _statements(node.body, f"{prefix}{node.name}.")
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield f"{prefix}{node.name}", _code(node)
        elif isinstance(node, (ast.Assign, ast.AnnAssign, ast.AugAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield f"{prefix}{', '.join(ast.unparse(target) for target in targets)}", _code(node)
        elif not isinstance(node, (ast.Import, ast.ImportFrom)) and not _is_text(node):
            yield f"{prefix}{type(node).__name__.lower()} statement", _code(node)


def _code(node: object) -> str:
    """Return a syntax tree as text that does not depend on the version of Python: empty fields are left out."""
    if isinstance(node, list):
        kept = [entry for entry in node if not _is_text(entry) and not isinstance(entry, (ast.Import, ast.ImportFrom))]
        return f"[{', '.join(_code(entry) for entry in kept)}]"
    if not isinstance(node, ast.AST):
        return repr(node)
    if isinstance(node, ast.Raise):  # whether it raises counts, the message does not
        raised = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
        return f"Raise({_code(raised)})"
    fields = {
        name: value
        for name, value in ast.iter_fields(node)
        if value not in (None, []) and name not in ("ctx", "kind", "type_comment", "type_params")
    }
    return f"{type(node).__name__}({', '.join(f'{name}={_code(value)}' for name, value in fields.items())})"


def _is_text(node: object) -> bool:
    """Return whether a statement is a bare text, as a docstring is."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _digest(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
