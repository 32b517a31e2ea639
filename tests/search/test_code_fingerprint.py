"""The code that decides numbers is known by what it does, not by where it is or how it is described."""

from __future__ import annotations

from pathlib import Path

import optuna
import pytest

from kt_ray.search.code_fingerprint import differences, fingerprint, function_hashes
from kt_ray.search.study_identity import FUNCTIONS, check_unchanged

FILES = {
    "task.py": "from package.losses.kl import kl\n\n\nclass Task:\n    def run(self):\n        return kl(1)\n",
    "losses/__init__.py": "",
    "losses/kl.py": "SCALE = 2\n\n\ndef kl(x):\n    if x < 0: raise ValueError('below 0')\n    return SCALE * x\n",
    "losses/unused.py": "def unused():\n    return 1\n",
}


@pytest.fixture
def package(tmp_path: Path) -> Path:
    root = tmp_path / "package"
    for name, text in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def hashes(root: Path) -> dict[str, str]:
    return function_hashes(root, "task", ("losses",))


def edit(path: Path, old: str, new: str) -> None:
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


def test_only_code_that_the_task_imports_counts(package: Path) -> None:
    assert set(hashes(package)) == {"Task", "Task.run", "SCALE", "kl"}


def test_moving_and_commenting_a_file_changes_nothing(package: Path) -> None:
    before = hashes(package)
    (package / "losses" / "kl.py").rename(package / "losses" / "divergences.py")
    edit(package / "task.py", "losses.kl", "losses.divergences")
    edit(package / "losses" / "divergences.py", "def kl(x):\n", 'def kl(x):\n    """Return it."""\n    # scaled\n')
    edit(package / "losses" / "divergences.py", "'below 0'", "'x must be 0 or more'")
    assert hashes(package) == before


def test_the_function_that_changed_is_named(package: Path) -> None:
    before = hashes(package)
    edit(package / "losses" / "kl.py", "SCALE * x", "SCALE * x * x")
    assert differences(before, hashes(package)) == "changed: kl"
    edit(package / "losses" / "kl.py", "def kl(", "def other():\n    pass\n\n\ndef kl(")
    assert "new: other" in differences(before, hashes(package))


def recorded(functions: dict[str, str]) -> dict[str, object]:
    return {"code": fingerprint(functions), FUNCTIONS: functions, "zoo": "z", "dataset": "d", "trial": {}}


def test_a_study_tells_the_function_and_goes_on(package: Path) -> None:
    study = optuna.create_study()
    before = hashes(package)
    assert check_unchanged(study, recorded(before), accept=False) == []
    edit(package / "losses" / "kl.py", "SCALE = 2", "SCALE = 3")
    assert check_unchanged(study, recorded(hashes(package)), accept=False) == ["code: changed: SCALE"]


def test_a_study_with_the_old_kind_of_fingerprint_goes_on(package: Path) -> None:
    study = optuna.create_study()
    study.set_user_attr("searched_with", {"code": "0123456789ab", "zoo": "z", "dataset": "d", "trial": {}})
    (told,) = check_unchanged(study, recorded(hashes(package)), accept=False)
    assert told.startswith("code:")
    assert check_unchanged(study, recorded(hashes(package)), accept=False) == []


def test_the_codes_of_the_two_tasks_are_found() -> None:
    import kt_ray

    root = Path(kt_ray.__file__).parent
    translation = function_hashes(root, "translation.task", ("data", "networks", "translation"))
    assert {"TranslatorTraining.run_epoch", "ImageDataset"} & set(translation)
    assert "StudentTraining.losses" in function_hashes(root, "distillation.task", ("data", "networks", "distillation"))
