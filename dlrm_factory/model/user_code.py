"""Code that comes with a declaration: text of files → a class. None runs that this process does not trust."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import CodeType, ModuleType
from typing import Any

from torch import nn

from dlrm_factory.config.declaration import DLRMDeclaration, ModuleArchitecture
from dlrm_factory.config.trust import code_digest, may_run
from dlrm_factory.errors import LimitError, ModuleError, RequestError, UntrustedCodeError

__all__ = ["load_class", "naming_the_line"]

_PACKAGE = "dlrm_module_"


def load_class(declaration: DLRMDeclaration) -> type[nn.Module]:
    """The class that the module of ``declaration`` names. UntrustedCodeError, or ModuleError if it cannot be had."""
    module = declaration.module
    assert module is not None
    digest = code_digest(module)
    if not may_run(digest):
        names = ", ".join(module.file_names)
        raise UntrustedCodeError(
            f"the model's dense net is code of its own ({names}), which runs as whatever runs it", declaration
        )
    package = f"{_PACKAGE}{digest[:16]}"
    _install(package, module)
    with naming_the_line(package, f"{module.file} cannot be loaded"):
        file = importlib.import_module(f"{package}.{module.file.removesuffix('.py')}")
    found = getattr(file, module.class_name, None)
    if not isinstance(found, type) or not issubclass(found, nn.Module):
        what = f"is not there{_modules_of(file)}" if found is None else "is not a torch.nn.Module"
        raise ModuleError(f'$.architecture.module: class "{module.class_name}" of {module.file} {what}')
    return found


def _modules_of(file: ModuleType) -> str:
    """``; it has MyNet``, the modules that ``file`` defines; empty if none."""
    names = [
        name
        for name, found in vars(file).items()
        if isinstance(found, type) and issubclass(found, nn.Module) and found.__module__ == file.__name__
    ]
    return f"; it has {', '.join(names)}" if names else ""


@contextmanager
def naming_the_line(package: str, what: str, *, called: Callable[..., Any] | None = None) -> Iterator[None]:
    """Raise ModuleError in place of what the code of ``package`` raises: ``what``, then its file and line.

    A RequestError stays one: the module refuses what it was given. ``package``: the name of a class's module, or the
    start of it. ``called``: a function of it whose line is told if the error comes before its first.
    """
    try:
        yield
    except ModuleError:
        raise
    except RequestError as error:
        # A class of the module's own could hold, and be answered, anything.
        kind = LimitError if isinstance(error, LimitError) else RequestError
        raise kind(str(error), str(getattr(error, "path", "$"))) from error
    except (Exception, SystemExit) as error:
        at = _at(error, package) or _of_function(called, package)
        said = error.msg if isinstance(error, SyntaxError) else error
        raise ModuleError(f"{what}: {at}{type(error).__name__}: {said}") from error


def _of_function(called: Callable[..., Any] | None, package: str) -> str:
    """``my_net.py:9 (__init__): ``, the first line of ``called`` if that is the user's code; else empty."""
    code = getattr(called, "__code__", None)
    if code is None or not code.co_filename.startswith(_start(package)):
        return ""
    return f"{_plain(code.co_filename)}:{code.co_firstlineno} ({code.co_name}): "


def _start(package: str) -> str:
    """Start of the file names of the code of ``package``."""
    return f"<{package.partition('.')[0]}"


def _at(error: BaseException, package: str) -> str:
    """``my_net.py:17 (forward): ``, the last line of the user's code that led to ``error``; empty if there is none."""
    if isinstance(error, SyntaxError) and error.filename and error.filename.startswith(f"<{_PACKAGE}"):
        return f"{_plain(error.filename)}:{error.lineno}: "
    own = _start(package)
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.startswith(own)]
    return f"{_plain(frames[-1].filename)}:{frames[-1].lineno} ({frames[-1].name}): " if frames else ""


def _plain(filename: str) -> str:
    return filename.strip("<>").rpartition("/")[2]


class _Loader(importlib.abc.InspectLoader):
    """Loads one file of a package from its text; a package itself is empty."""

    def __init__(self, filename: str, text: str) -> None:
        self._filename, self._text = filename, text

    def get_source(self, fullname: str) -> str:
        return self._text

    def get_code(self, fullname: str) -> CodeType:
        code: CodeType = compile(self._text, self._filename, "exec", dont_inherit=True)
        return code


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the packages that were installed, and their files."""

    def __init__(self) -> None:
        self.sources: dict[str, dict[str, str]] = {}

    def find_spec(self, fullname: str, path: Any, target: ModuleType | None = None) -> Any:
        package, _, name = fullname.partition(".")
        files = self.sources.get(package)
        if files is None:
            return None
        if not name:
            return importlib.machinery.ModuleSpec(fullname, _Loader(f"<{package}>", ""), is_package=True)
        text = files.get(f"{name}.py")
        if text is None:
            return None
        return importlib.machinery.ModuleSpec(fullname, _Loader(f"<{package}/{name}.py>", text))


_finder = _Finder()


def _install(package: str, module: ModuleArchitecture) -> None:
    if _finder not in sys.meta_path:
        sys.meta_path.append(_finder)
    _finder.sources[package] = dict(module.sources or {})
