"""Optuna's CMA-ES, which keeps its state as a pickle in the study's storage, made safe to read from anybody's."""

from __future__ import annotations

import io
import pickle
from typing import Any

from optuna.samplers import CmaEsSampler
from optuna.trial import FrozenTrial

from kt_ray.errors import StudyError

# What a pickled optimiser is made of: the package's own classes and NumPy's arrays (under NumPy 1's names too).
ALLOWED = {
    ("cmaes._cma", "CMA"),
    ("cmaes._cmawm", "CMAwM"),
    ("cmaes._sepcma", "SepCMA"),
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "scalar"),
    ("numpy._core.numeric", "_frombuffer"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy.core.numeric", "_frombuffer"),
}


class SafeCmaEsSampler(CmaEsSampler):  # type: ignore[misc, unused-ignore]
    """CMA-ES that unpickles optimisers alone. Raises StudyError where the storage holds another pickle."""

    def _restore_optimizer(self, completed_trials: list[FrozenTrial]) -> Any:
        """The optimiser of the last trial that has one, as Optuna's own method finds it."""
        for trial in reversed(completed_trials):
            parts = {
                key: value for key, value in trial.system_attrs.items() if key.startswith(self._attr_key_optimizer)
            }
            if not parts:
                continue
            try:
                return _Unpickler(io.BytesIO(bytes.fromhex(self._concat_optimizer_attrs(parts)))).load()
            except Exception as error:  # damaged bytes lead anywhere
                raise StudyError(
                    f"trial {trial.number} holds a state of CMA-ES that cannot be read safely ({error}); search with "
                    "another sampler, or under another name"
                ) from None
        return None


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """Only what `ALLOWED` names."""
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return super().find_class(module, name)
