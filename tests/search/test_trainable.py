"""A worker of a search lets go of one trial before it takes the next."""

from __future__ import annotations

from unittest import mock

from kt_ray.search import trainable
from kt_ray.search.trainable import TaskTrainable


def test_the_memory_of_a_trial_is_given_back_before_the_next() -> None:
    """A worker shares its GPU with others; of the zoo and images it holds one copy at a time."""
    worker = TaskTrainable.__new__(TaskTrainable)
    worker._session, worker._device = mock.sentinel.session, "cuda"
    with mock.patch.object(trainable, "release_memory") as release:
        assert worker.reset_config({})
    assert worker._session is None
    release.assert_called_once_with("cuda")
