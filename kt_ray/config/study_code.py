"""Running the code that a study brings along, so that what it registers is there. Who may run is decided elsewhere.

A file runs once a process, as a module of its own that is named by its hash: what it defines can be pickled by
reference, and every process that unpickles it loads the file first.
"""

from __future__ import annotations

import linecache
import sys
import traceback
from collections.abc import Mapping, Sequence
from types import ModuleType

from kt_ray._io.text import first_line
from kt_ray.config.code import CodeFile
from kt_ray.errors import ConfigError
from kt_ray.registry import Entry, Kind, register, registering

_loaded: dict[str, tuple[CodeFile, tuple[Entry, ...]]] = {}  # of each file name, what runs now and what it registered


def load_code(files: Sequence[CodeFile]) -> None:
    """Run each file that has not run in this process. Another text under the same name takes the place of the earlier.

    Raises ConfigError, with file and line, if a file raises, registers nothing, or registers a name that is taken.
    """
    owners: dict[tuple[str, str], str] = {}
    for file in files:
        before = _loaded.get(file.name)
        if before is None or before[0] != file:
            unload_code(file.name)
            _loaded[file.name] = file, _run(file)
        for entry in _loaded[file.name][1]:
            owner = owners.setdefault((entry.kind, entry.name), file.name)
            if owner != file.name:
                raise ConfigError(f"{file.name}: {entry.kind} {entry.name!r} is registered by {owner} too; rename one")
            if not _is_registered(entry):
                getattr(register, entry.kind).restore(entry)


def unload_code(name: str) -> None:
    """Forget what the file `name` registered, if it has run."""
    if name in _loaded:
        file, _ = _loaded.pop(name)
        _forget(file)


def code_of(*used: tuple[str, str]) -> tuple[CodeFile, ...]:
    """Return the files of code that registered what is `used`, each by kind and name; none for what is bundled."""
    return tuple(
        file
        for _, (file, entries) in sorted(_loaded.items())
        if any((entry.kind, entry.name) in used and _is_registered(entry) for entry in entries)
    )


def missing_code(named: Mapping[str, str]) -> dict[str, str]:
    """Return those of `named`, SHA-256 by file, that have not run here. Runs nothing."""
    present = {file.sha256 for file, _ in _loaded.values()}
    return {name: sha256 for name, sha256 in named.items() if sha256 not in present}


def require_code(named: Mapping[str, str]) -> None:
    """Raise ConfigError if code that a zoo or a translator names is missing: a person has to give it."""
    for name, sha256 in missing_code(named).items():
        raise ConfigError(f"it needs {asked_for(name, sha256)}")


def asked_for(name: str, sha256: str) -> str:
    """Return which file is missing, and how to give it, for a message."""
    return f"the code {name} with SHA-256 {sha256}; read that file, then give it with --code"


def _run(file: CodeFile) -> tuple[Entry, ...]:
    """Run `file` and return what it registered; nothing of it stays if it fails."""
    module = ModuleType(f"kt_ray_code_{file.sha256[:12]}")
    module.__file__ = file.name
    linecache.cache[file.name] = len(file.text), None, file.text.splitlines(keepends=True), file.name
    sys.modules[module.__name__] = module
    try:
        with registering(_origin(file)):
            exec(compile(file.text, file.name, "exec", dont_inherit=True), module.__dict__)
        entries = tuple(entry for kind in register.kinds() for entry in kind.entries(_origin(file)))
        if not entries:
            raise ConfigError("registers nothing; decorate what makes a network, pair, … with `kt_ray.register`")
    except KeyboardInterrupt:
        _forget(file)
        raise
    except BaseException as error:  # people's own code fails, or exits, as it likes
        _forget(file)
        raise ConfigError(f"{_place(file, error)}: {_what(error)}") from error
    return entries


def _place(file: CodeFile, error: BaseException) -> str:
    """Return FILE:LINE of the deepest line of `file` that an error went through, or FILE."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file.name]
    if isinstance(error, SyntaxError) and error.filename == file.name:
        lines.append(error.lineno)
    return f"{file.name}:{lines[-1]}" if lines else file.name


def _what(error: BaseException) -> str:
    if isinstance(error, ConfigError):
        return first_line(error)
    return f"{type(error).__name__}: {error.msg if isinstance(error, SyntaxError) else first_line(error)}"


def _forget(file: CodeFile) -> None:
    for kind in register.kinds():
        kind.remove(_origin(file))
    sys.modules.pop(f"kt_ray_code_{file.sha256[:12]}", None)
    linecache.cache.pop(file.name, None)


def _is_registered(entry: Entry) -> bool:
    """True unless other code has taken the name of `entry` since."""
    kind: Kind = getattr(register, entry.kind)
    return entry in kind.entries(entry.origin)


def _origin(file: CodeFile) -> str:
    return f"code {file.sha256}"
