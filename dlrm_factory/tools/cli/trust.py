"""Option ``--trust-code`` of the commands that may meet a dense net of somebody's own."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Annotated, Any

import typer

from dlrm_factory.config.trust import trust_code

__all__ = ["takes_code"]

_Option = Annotated[
    bool,
    typer.Option("--trust-code", help="Run the Python code of the model's own dense net; read it first."),
]


def takes_code(command: Callable[..., None]) -> Callable[..., None]:
    """``command`` with the option ``--trust-code``."""

    @wraps(command)
    def run(*arguments: Any, trusts: bool, **options: Any) -> None:
        if trusts:
            trust_code(None)
        command(*arguments, **options)

    signature = inspect.signature(command, eval_str=True)
    option = inspect.Parameter("trusts", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=_Option)
    parameters = [*signature.parameters.values(), option]
    # What typer reads of a function.
    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {each.name: each.annotation for each in parameters}
    del run.__wrapped__
    return run
