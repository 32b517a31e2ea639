"""Run the fast tests with the oldest versions that setup.cfg admits, as far as they install: `make test-oldest`."""

from __future__ import annotations

import configparser
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
ENVIRONMENT = ROOT / ".venv-oldest"
BOUND = re.compile(r"(?P<package>[A-Za-z0-9_-]+(\[[a-z]+\])?)\s*>=\s*(?P<version>[0-9.]+)")


def oldest(section: str, key: str) -> list[str]:
    """Return `package==version` for each lower bound in a list of requirements of setup.cfg."""
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    lines = parser.get(section, key, raw=True).splitlines()
    return [f"{match['package']}=={match['version']}" for line in lines if (match := BOUND.match(line.strip()))]


def pip(*arguments: str) -> bool:
    """Run pip in the environment; returns whether it succeeded."""
    command = [str(ENVIRONMENT / "bin" / "python"), "-m", "pip", "install", "--quiet", *arguments]
    return subprocess.run(command, cwd=ROOT, check=False).returncode == 0


def main() -> int:
    """Install, name what has no oldest version here, run the tests; returns pytest's exit status."""
    subprocess.run([sys.executable, "-m", "venv", str(ENVIRONMENT)], check=True)
    wanted = oldest("options", "install_requires")
    if not pip(*wanted):
        if not pip("--editable", ".[test]"):
            return 1
        for requirement in wanted:  # one that has no wheel for this Python, or none beside the others, stays newer
            if not pip(requirement):
                sys.stderr.write(f"not installed: {requirement}\n")
    if not pip("--editable", ".[test]"):
        return 1
    tests = [str(ENVIRONMENT / "bin" / "python"), "-m", "pytest", "-m", "not slow and not gpu", *sys.argv[1:]]
    return subprocess.run(tests, cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
