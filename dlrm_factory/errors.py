"""The error tree of the project. A user's mistake raises one of these; `assert` is for our own invariants.

::

    DLRMError                     what the command line prints as one message
    ├── ConfigError               the declaration is wrong; carries every problem found, each with its path
    ├── PlanError                 the tables cannot be placed, or TorchRec would compute them wrongly
    ├── ModuleError               the user's own dense net cannot be loaded, raises, or returns what is not declared
    │   └── UntrustedCodeError    it is code that this process was not told to run
    ├── WeightsError              a checkpoint or table file is missing, misshapen, damaged or unsafe
    ├── ArchiveError              an archive cannot be staged, sealed or read
    ├── DataError                 training data is unreadable or does not match the declaration
    ├── FeatureError              a value is wrong, its place not known yet; becomes a RequestError or a DataError
    ├── ServingError              TorchServe cannot be started, reached or told what to do
    │   └── NotAnswering          a model's workers are ready, and the model does not answer
    ├── GroupError                a rank of a group is gone or late; the group ends, and the request may be sent again
    ├── RankError                 a rank could not score one batch; the group goes on
    ├── StackError                the installed packages do not work together
    ├── ClientError               a client's call failed; its own tree is in `dlrm_factory.client`
    └── RequestError              one request is wrong: HTTP 4xx, with the path of the mistake
        └── LimitError            one request is over a declared limit: HTTP 413
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Any

__all__ = [
    "ArchiveError",
    "ConfigError",
    "DLRMError",
    "DataError",
    "GroupError",
    "LimitError",
    "ModuleError",
    "PlanError",
    "RankError",
    "RequestError",
    "ServingError",
    "StackError",
    "UntrustedCodeError",
    "WeightsError",
    "near_matches",
]


class DLRMError(Exception):
    """Base of every error a user can cause and mend."""


class ConfigError(DLRMError):
    """The declaration is wrong.

    ``problems`` lists every mistake as ``"$.tables[2].dtype: …"``.
    """

    def __init__(self, problems: Sequence[str], source: str = "") -> None:
        self.problems = list(problems)
        self.source = source
        head = f"{source}: " if source else ""
        if len(self.problems) == 1:
            message = head + self.problems[0]
        else:
            message = f"{head}{len(self.problems)} problems\n" + "\n".join(
                f"  {problem}" for problem in self.problems
            )
        super().__init__(message)


class PlanError(DLRMError):
    """The tables cannot be placed as asked."""


class ModuleError(DLRMError):
    """The user's own dense net cannot be loaded, raises, or returns what is not declared."""


class UntrustedCodeError(ModuleError):
    """The dense net is code that this process was not told to run.

    ``declaration``: the `DLRMDeclaration` that brings it, to read its ``module.sources`` and to give to `trust_code`.
    """

    def __init__(self, message: str, declaration: Any) -> None:
        super().__init__(
            f"{message}; read it, then give --trust-code (in Python: dlrm_factory.trust_code(error.declaration), whose "
            "module.sources is the text)"
        )
        self.declaration = declaration


class WeightsError(DLRMError):
    """Weights are missing, misshapen, damaged or not safe to load."""


class ArchiveError(DLRMError):
    """An archive cannot be staged, sealed or read."""


class DataError(DLRMError):
    """Training data is unreadable or does not match the declaration."""


class ServingError(DLRMError):
    """TorchServe cannot be started, reached or told what to do."""


class GroupError(DLRMError):
    """A rank of the group is gone, or did not answer in time.

    Nothing is known to be wrong with the request, which may be sent again, to another group or to this one once it
    has been started again.
    """


class RankError(DLRMError):
    """A rank could not score one batch. The group goes on."""


class StackError(DLRMError):
    """The installed packages do not work together."""


class RequestError(DLRMError):
    """One request is wrong. Answered with ``code``; the other requests of the batch are unaffected.

    Args:
        message: field, what was found, what is allowed, what to do.
        path: JSONPath of the mistake, e.g. ``$.instances[3].user_id``.
        others: further mistakes in the same request.
        more: there are still more mistakes, which nobody counted.
    """

    code = 400

    def __init__(
        self, message: str, path: str = "$", *, others: Sequence[RequestError] = (), more: bool = False
    ) -> None:
        super().__init__(message)
        self.message = message
        self.path = path
        self.others = tuple(others)
        self.more = more

    def body(self) -> dict[str, Any]:
        """The answer's JSON object: TorchServe's own error shape, the path, and all errors if several."""
        body: dict[str, Any] = {
            "code": self.code,
            "type": type(self).__name__,
            "message": self.message,
            "path": self.path,
        }
        if not self.others:
            return body
        body["message"] = f"{self.message} (and {self._count_of_others()} listed in errors)"
        errors = [{"message": error.message, "path": error.path} for error in (self, *self.others)]
        return {**body, "errors": errors}

    def _count_of_others(self) -> str:
        count = len(self.others)
        if self.more:
            return f"more than {count} other mistakes, the first {count}"
        return "1 other mistake," if count == 1 else f"{count} other mistakes,"


class LimitError(RequestError):
    """One request is over a declared limit."""

    code = 413


def near_matches(name: str, known: Iterable[str]) -> str:
    """``'; did you mean "user_id"?'`` for a name that is almost one of ``known``, else ``''``."""
    close = difflib.get_close_matches(name, list(known), n=3, cutoff=0.6)
    if not close:
        return ""
    return "; did you mean " + " or ".join(f'"{match}"' for match in close) + "?"
