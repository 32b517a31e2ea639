"""YAML files that may include others, and where in them each value stands.

In any mapping, `include: FILE` (or a list of files) stands for the entries of that file, which the entries beside it
replace; a later file's replace an earlier one's. Paths are relative to the file that includes. Included files are those
in or below the folder of the study file, bundled ones, and those in folders that a person allows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from kt_ray.config.yaml_rules import ENTRIES, StudyLoader
from kt_ray.errors import ConfigError

INCLUDE = "include"
BUNDLED = Path(str(resources.files("kt_ray.search_spaces")))  # the folder of the bundled study files
LONGEST = 1_000  # characters of a path


class Source:
    """The YAML file at `path`, whose top is a mapping: its `content`, and the place of every dotted path in it.

    It may include files in or below its own folder and `folders`, and bundled ones.
    Raises ConfigError, naming file and line, where it or a file that it includes is missing, is not YAML, includes
    itself, lies elsewhere, or gives a key twice.
    """

    def __init__(self, path: Path, folders: Sequence[Path] = ()) -> None:
        self.path = path
        self.overridden: list[str] = []
        self._root: Node
        try:
            loader, self._root = _compose(path)
            includes = _Includes((path.parent, BUNDLED, *folders))
            includes.expand(self._root, (path.resolve(),))
            self._refers = includes.found
            content = loader.construct_document(self._root)
        except yaml.YAMLError as error:
            raise _not_yaml(error, path) from None
        except RecursionError:
            raise ConfigError("nested too deeply to be a study file", str(path)) from None
        self.content: dict[str, Any] = content

    def text(self) -> str:
        """The file as it is; where it refers to others, one YAML text with all of it and of what was overridden."""
        if not self._refers:
            return self.path.read_text(encoding="utf-8")
        return yaml.safe_dump(self.content, sort_keys=False, allow_unicode=True)

    def override(self, path: str, value: Any) -> None:
        """Set the dotted `path`; its faults are then not the file's."""
        set_path(self.content, path, value)
        self.overridden.append(path)

    def embed(self, path: str, value: Any) -> None:
        """Put what files hold in place of their names at the dotted `path`."""
        set_path(self.content, path, value)
        self._refers = True

    def error(self, problems: Sequence[str]) -> ConfigError:
        """`problems`, each of which begins with its dotted path and a colon, with their places."""
        return ConfigError([f"{self.place(problem.split(': ')[0])}: {problem}" for problem in problems])

    def place(self, dotted: str) -> str:
        """`FILE:LINE` of the dotted path, or of its deepest part that exists; `--set PATH` where that gave it."""
        for path in self.overridden:
            if f"{dotted}.".startswith(f"{path}."):
                return f"--set {path}"
        where, node, rest = str(self.path), self._root, dotted
        while (found := _step(node, rest)) is not None:
            key, node, rest = found
            where = _place(key)
        return where


def set_path(tree: dict[str, Any], path: str, value: Any) -> None:
    """Set `tree[a][b][c] = value` for the dotted `path` "a.b.c", making the mappings on the way."""
    *parents, leaf = path.split(".")
    for parent in parents:
        child = tree.get(parent)
        if not isinstance(child, dict):
            child = tree[parent] = {}
        tree = child
    tree[leaf] = value


def _compose(path: Path) -> tuple[StudyLoader, MappingNode]:
    """The nodes of a file, whose marks carry its name, and the loader that turns them into content."""
    try:
        loader = StudyLoader(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"no such file: {path}; `kt-ray spaces list` names the bundled study files") from None
    except yaml.reader.ReaderError as error:
        raise ConfigError(f"not YAML: {error.reason}", str(path)) from None
    except UnicodeDecodeError as error:
        wide = bytes(error.object[:2]) in (b"\xff\xfe", b"\xfe\xff")
        raise ConfigError(f"is {'UTF-16' if wide else 'no UTF-8'} text; save it as UTF-8", str(path)) from None
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", f"{path!s:.200}") from None
    loader.name = str(path)
    root = loader.get_single_node()
    if not isinstance(root, MappingNode):
        kind = {SequenceNode: "list", ScalarNode: "scalar"}.get(type(root), "nothing")
        raise ConfigError(f"expected a mapping at the top, got {kind}", str(path))
    return loader, root


class _Includes:
    """Puts, in every mapping under a node, the entries of included files before those that stand there."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self.found = False
        self._folders = tuple(folder.resolve() for folder in folders)
        self._seen: set[int] = set()  # an alias is the same node again, however often it stands somewhere

    def expand(self, node: Node, chain: tuple[Path, ...]) -> None:
        """`chain` holds the files from the first to the one that `node` stands in."""
        if id(node) in self._seen:
            return
        self._seen.add(id(node))
        if isinstance(node, SequenceNode):
            for child in node.value:
                self.expand(child, chain)
        if not isinstance(node, MappingNode):
            return
        _refuse_double_keys(node)
        included: list[tuple[Node, Node]] = []
        for key, value in node.value:
            if key.value != INCLUDE:
                self.expand(value, chain)
                continue
            self.found = True
            for path in self._files(key, value, chain):
                _, other = _compose(path)
                self.expand(other, (*chain, path.resolve()))
                included += other.value
        node.value = included + [(key, value) for key, value in node.value if key.value != INCLUDE]

    def _files(self, key: Node, value: Node, chain: tuple[Path, ...]) -> Iterator[Path]:
        """The files that an `include` names, each there, in an allowed folder and none of them in `chain`."""
        entries = value.value if isinstance(value, SequenceNode) else [value]
        for entry in entries:
            if not isinstance(entry, ScalarNode) or not entry.value:
                raise ConfigError(f"{_place(key)}: {INCLUDE}: expected a file or a list of files")
            path, where = Path(key.start_mark.name).parent / entry.value[:LONGEST], f"{_place(entry)}: {INCLUDE}"
            try:
                place = path.resolve()
            except (OSError, ValueError, RuntimeError):  # RuntimeError: links in a circle, before Python 3.13
                raise ConfigError(f"{where}: {entry.value[:LONGEST]!r} is no path") from None
            if not any(place.is_relative_to(folder) for folder in self._folders):
                raise ConfigError(
                    f"{where}: {path} is not in the folder of the study file; if it is meant, allow its folder with "
                    "--allow-include DIR"
                )
            if len(entry.value) > LONGEST or not path.is_file():
                raise ConfigError(f"{where}: no such file: {path}; paths are relative to this file")
            if place in chain:
                names = " includes ".join(file.name for file in (*chain[chain.index(place) :], path))
                raise ConfigError(f"{where}: files in a circle: {names}")
            yield path


def _refuse_double_keys(node: MappingNode) -> None:
    """YAML takes the last of two equal keys in silence."""
    if len(node.value) > ENTRIES:
        raise ConfigError(f"{_place(node)}: a mapping of {len(node.value):,} entries; expected at most {ENTRIES:,}")
    lines: dict[str, Node] = {}
    for key, _ in node.value:
        if isinstance(key, ScalarNode) and key.value != "<<":
            if key.value in lines:
                first = lines[key.value].start_mark.line + 1
                raise ConfigError(f"{_place(key)}: {key.value}: given twice, first in line {first}; leave one out")
            lines[key.value] = key


def _step(node: Node, dotted: str) -> tuple[Node, Node, str] | None:
    """Into the entry of `node` whose key begins `dotted`, the longest such: keys of a space have dots themselves."""
    if isinstance(node, SequenceNode):
        head, _, rest = dotted.partition(".")
        if head.isdigit() and int(head) < len(node.value):
            return node.value[int(head)], node.value[int(head)], rest
        return None
    if not isinstance(node, MappingNode) or not dotted:
        return None
    keys = [(key, value) for key, value in node.value if isinstance(key, ScalarNode)]
    fitting = [(key, value) for key, value in keys if f"{dotted}.".startswith(f"{key.value}.")]
    if not fitting:
        return None
    key, value = max(reversed(fitting), key=lambda entry: len(entry[0].value))  # of equal keys, the last one counts
    return key, value, dotted[len(key.value) + 1 :]


def _place(node: Node) -> str:
    return f"{node.start_mark.name}:{node.start_mark.line + 1}"


def _not_yaml(error: yaml.YAMLError, path: Path) -> ConfigError:
    mark = getattr(error, "problem_mark", None)
    where = f"{mark.name}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)
    return ConfigError(f"{where}: not YAML: {getattr(error, 'problem', None) or error}")
