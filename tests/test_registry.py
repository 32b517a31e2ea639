"""What people may add, and under which names."""

import pytest
from pydantic import BaseModel

from kt_ray import register
from kt_ray.errors import ConfigError
from kt_ray.registry import registering


class Options(BaseModel):
    size: int = 1


def test_names_are_taken_once_but_code_may_be_loaded_again() -> None:
    with registering("code abc"):
        register.loss("mine", options=Options)(lambda options: options.size)
    try:
        assert register.loss.make("mine", {"size": 3}) == 3
        with registering("code def"):
            register.loss("mine", options=Options)(lambda options: -options.size)
        assert register.loss.make("mine") == -1
        with pytest.raises(ConfigError, match=r"options\.size"):
            register.loss.make("mine", {"size": "big"})
    finally:
        register.loss.remove("code def")
    with pytest.raises(ConfigError, match="mine"):
        register.loss.get("mine")


def test_built_in_names_stay_what_they_are() -> None:
    register.pair.get("halved")
    with pytest.raises(ConfigError, match="halved"):
        register.pair("halved")(object)


def test_what_has_no_options_model_is_refused() -> None:
    with pytest.raises(ConfigError, match="options"):
        register.family("mine", options=dict)  # type: ignore[arg-type]


def test_what_raises_is_one_line() -> None:
    with registering("code abc"):
        register.sampler("mine")(lambda options: 1 / 0)
    try:
        with pytest.raises(ConfigError, match="ZeroDivisionError"):
            register.sampler.make("mine")
    finally:
        register.sampler.remove("code abc")
