"""Running a study's code: what it registers is there, whatever else ran before."""

from __future__ import annotations

import pickle
import sys
import traceback
from collections.abc import Iterator

import pytest

from kt_ray import register
from kt_ray.config.code import CodeFile
from kt_ray.config.study_code import code_of, load_code, require_code, unload_code
from kt_ray.errors import ConfigError
from kt_ray.networks.contracts import built, make_network
from kt_ray.registry import cached

NETWORK = """
from torch import nn
from kt_ray import register

LOADED = []
LOADED.append(1)

@register.network("mine")
class Mine:
    image_shape, classes = (1, 8, 8), WIDTH
    mean, deviation = (), ()

    def build(self):
        return nn.Sequential(nn.Flatten(), nn.Linear(64, WIDTH))

    def sites(self):
        return ("0",)

    def __init__(self, options):
        pass
"""


def code(text: str, name: str = "net.py") -> CodeFile:
    return CodeFile.model_validate({"name": name, "text": text})


def network(width: int, name: str = "net.py") -> CodeFile:
    return code(NETWORK.replace("WIDTH", str(width)), name)


@pytest.fixture(autouse=True)
def nothing_stays() -> Iterator[None]:
    before = {name for name in sys.modules if name.startswith("kt_ray_code_")}
    yield
    for name in ("net.py", "other.py"):
        unload_code(name)
    assert {name for name in sys.modules if name.startswith("kt_ray_code_")} <= before


def test_a_file_runs_once_and_registers_under_its_hash() -> None:
    file = network(3)
    load_code([file])
    load_code([file])
    module = sys.modules[f"kt_ray_code_{file.sha256[:12]}"]
    entry = register.network.get("mine")
    assert module.LOADED == [1]
    assert entry.origin == f"code {file.sha256}"
    assert built(make_network("mine"))[1].out_features == 3
    assert pickle.loads(pickle.dumps(entry.make)) is module.Mine
    assert code_of(("network", "mine"), ("pair", "halved")) == (file,)
    assert code_of(("pair", "halved"), ("network", "other")) == ()


def test_another_text_takes_the_place_of_the_earlier() -> None:

    @cached(1)
    def classes() -> object:
        return make_network("mine").classes

    load_code([network(3)])
    assert classes() == 3
    load_code([network(5)])
    assert classes() == 5
    load_code([code("from kt_ray import register\nregister.loss('mine')(dict)")])
    with pytest.raises(ConfigError, match="mine"):
        make_network("mine")


def test_two_studies_in_one_process_have_each_their_own() -> None:
    first, second = network(3), network(5, "other.py")
    for files, classes in (([first], 3), ([second], 5), ([first], 3)):
        load_code(files)
        assert make_network("mine").classes == classes
    with pytest.raises(ConfigError, match=r"other\.py: network 'mine' is registered by net\.py"):
        load_code([first, second])


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("x = (\n", "net.py:1: SyntaxError: '(' was never closed"),
        ("\nimport torch_that_is_missing\n", "net.py:2: ModuleNotFoundError: No module named 'torch_that_is_missing'"),
        ("def f():\n  return 1 / 0\nf()", "net.py:2: ZeroDivisionError: division by zero"),
        ("import sys\nsys.exit(0)", "net.py:2: SystemExit: 0"),
        ("x = 1", "net.py: registers nothing"),
        (
            "from kt_ray import register\nregister.pair('halved')(dict)",
            "net.py:2: pair 'halved' is registered by kt_ray",
        ),
        ("from kt_ray import register\nregister.pair('a', options=3)(dict)", "net.py:2: pair 'a': options must be"),
    ],
)
def test_what_fails_is_one_line_and_leaves_nothing(text: str, line: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_code([code(text)])
    assert str(error.value).startswith(line)
    assert "\n" not in str(error.value)


def test_a_traceback_shows_the_line() -> None:
    load_code([code("from kt_ray import register\n@register.loss('mine')\ndef f(options):\n  return 1 / 0  # here")])
    with pytest.raises(ConfigError, match="ZeroDivisionError") as error:
        register.loss.make("mine")
    cause = error.value.__cause__
    assert cause is not None
    assert "return 1 / 0  # here" in "".join(traceback.format_exception(cause))


def test_what_names_code_does_not_run_it() -> None:
    file = network(3)
    with pytest.raises(ConfigError, match=rf"code net\.py with SHA-256 {file.sha256}; .* --code"):
        require_code({"net.py": file.sha256})
    load_code([file])
    require_code({"net.py": file.sha256})
    with pytest.raises(ConfigError, match="--code"):
        require_code({"net.py": "0" * 64})
