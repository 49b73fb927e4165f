"""Exceptions that end a run before its time, and the exit code of each."""


class InputError(Exception):
    """The user's input cannot be run: ``problem`` names it, ``cure`` says what is allowed. Exit code 2."""

    exit_code = 2

    def __init__(self, problem: str, cure: str):
        super().__init__(problem, cure)  # the same arguments, so that it can be pickled
        self.problem = problem
        self.cure = cure

    def __str__(self) -> str:
        return f"{self.problem}\n  {self.cure}"


class Unavailable(InputError):
    """This machine cannot run it; another can."""


class TrainingError(Exception):
    """The run cannot go on, through no fault of the command. Exit code 1."""

    exit_code = 1


class NotFinite(TrainingError):
    """Numbers of the run are no longer finite; from the same state they would be the same again."""


class LostRank(TrainingError):
    """Another rank is gone or does not answer."""


class Interrupted(KeyboardInterrupt):
    """A signal ended the run after a whole step; its checkpoint continues it. Exit code 75 (EX_TEMPFAIL).

    As a KeyboardInterrupt it ends a sweep too, which an ordinary exception would not.
    """

    exit_code = 75
