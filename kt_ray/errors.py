"""The errors that people meet. The command line prints their message on one line and exits with status 2."""


class KTError(Exception):
    """Something a person can mend. The message says what is wrong, the value, what was expected, what to do."""


class ConfigError(KTError):
    """A configuration or study file is wrong. `problems` holds one line for each fault found."""

    def __init__(self, problems: list[str] | str, source: str | None = None) -> None:
        self.problems = [problems] if isinstance(problems, str) else problems
        self.source = source
        prefix = f"{source}: " if source else ""
        super().__init__("\n".join(prefix + problem for problem in self.problems))


class DataError(KTError):
    """A dataset is missing or is not what it should be."""


class ZooError(KTError):
    """A zoo is missing, damaged, or of another pair, recipe or dataset."""


class CheckpointError(KTError):
    """A checkpoint cannot be read safely, or has other parameters than the network it is meant for."""


class ResourceError(KTError):
    """The Ray cluster cannot be reached, or no node of it can meet a demand."""


class StudyError(KTError):
    """A study cannot be opened, is held by another driver, or misses what was asked for."""


class TrackingError(KTError):
    """MLflow's store or registry cannot be reached, or misses what was asked for."""
