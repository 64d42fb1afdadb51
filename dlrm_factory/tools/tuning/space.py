"""Settings that are tuned, and the space they are searched in: about the declared ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from dlrm_factory.config.checks import problems_of
from dlrm_factory.config.declaration import DLRMDeclaration
from dlrm_factory.tools.training.optimizers import MAX_ADAM_VALUES

if TYPE_CHECKING:
    from optuna import Trial

__all__ = ["Settings", "Space", "prepared"]

_PATIENCE = 2
_RATES = {"row_wise_adagrad": 0.05, "adam": 0.003}  # in the middle, where another optimiser is declared
_REACH = 10.0  # times the middle, and the middle by it
_MIN_MAX_EPOCHS, _MAX_EPOCHS = 6, 50


class Settings(msgspec.Struct, kw_only=True, frozen=True):
    """Settings that a trial tries, named as in the declaration.

    Fields:
        embedding_dim: of all tables; None of a module of the user's own, whose layers may be made for its own.
    """

    sparse_optimizer: str
    sparse_learning_rate: float
    learning_rate: float
    epochs: int
    embedding_dim: int | None = None

    @staticmethod
    def of(declaration: DLRMDeclaration) -> Settings:
        """Declared ones."""
        training = declaration.training
        return Settings(
            sparse_optimizer=training.sparse_optimizer,
            sparse_learning_rate=training.sparse_learning_rate,
            learning_rate=training.learning_rate,
            epochs=training.epochs,
            embedding_dim=None if declaration.module is not None else declaration.embedding_dim,
        )

    def applied_to(self, declaration: DLRMDeclaration) -> DLRMDeclaration:
        """``declaration`` with these settings; the last layer of the dense arch is the embedding_dim."""
        given = msgspec.structs.asdict(self)
        dim = given.pop("embedding_dim")
        training = msgspec.structs.replace(declaration.training, **given)
        changed = msgspec.structs.replace(declaration, training=training)
        if dim is None:
            return changed
        sizes = declaration.dense_arch_layer_sizes  # deepfm has none
        return msgspec.structs.replace(
            changed,
            dense_arch_layer_sizes=None if sizes is None else [*sizes[:-1], dim],
            tables=[msgspec.structs.replace(table, embedding_dim=dim) for table in declaration.tables],
        )


def prepared(declaration: DLRMDeclaration) -> DLRMDeclaration:
    """``declaration`` with early stopping on a validation part, and trained anew on all rows if it had neither."""
    training = declaration.training
    if training.early_stopping is not None:
        return declaration
    return msgspec.structs.replace(
        declaration,
        training=msgspec.structs.replace(
            training, early_stopping=_PATIENCE, validation=training.validation or 0.1, refit=True
        ),
    )


class Space:
    """Space about the settings of a declaration.

    Rates reach from a tenth to ten times the declared ones, epochs to twice as many as declared, the dimension from
    half to twice the declared one; of a module of the user's own it stays. Row-wise Adagrad is always tried, Adam where
    tables are fused or small.
    """

    def __init__(self, declaration: DLRMDeclaration) -> None:
        declared = Settings.of(declaration)
        values = sum(table.num_embeddings * table.embedding_dim for table in declaration.tables)
        optimizers = {declared.sparse_optimizer, "row_wise_adagrad"}
        if declaration.sharding.device != "cpu" or values <= MAX_ADAM_VALUES:
            optimizers.add("adam")
        self.declared = declared
        self.optimizers = sorted(optimizers)
        self.max_epochs = max(min(max(2 * declared.epochs, _MIN_MAX_EPOCHS), _MAX_EPOCHS), declared.epochs)
        dim = declared.embedding_dim
        dims = [] if dim is None else [dim // 2, dim, 2 * dim]
        self.dims = [each for each in dims if self._allowed(declaration, each)]

    @staticmethod
    def _allowed(declaration: DLRMDeclaration, dim: int) -> bool:
        settings = msgspec.structs.replace(Settings.of(declaration), embedding_dim=dim)
        return dim > 0 and not problems_of(settings.applied_to(declaration))

    def suggest(self, trial: Trial) -> Settings:
        """Settings that the sampler proposes for ``trial``."""
        optimizer = trial.suggest_categorical("sparse_optimizer", self.optimizers)
        return Settings(
            sparse_optimizer=optimizer,
            sparse_learning_rate=_about(trial, _rate_name(optimizer), self._middle(optimizer)),
            learning_rate=_about(trial, "learning_rate", self.declared.learning_rate),
            epochs=trial.suggest_int("epochs", 1, self.max_epochs),
            embedding_dim=trial.suggest_categorical("embedding_dim", self.dims) if self.dims else None,
        )

    def _middle(self, optimizer: str) -> float:
        if optimizer == self.declared.sparse_optimizer:
            return self.declared.sparse_learning_rate
        return _RATES[optimizer]

    @staticmethod
    def parameters(settings: Settings) -> dict[str, Any]:
        """``settings`` under the names that `suggest` gives its parameters: each optimiser has a rate of its own."""
        found = msgspec.structs.asdict(settings)
        if settings.embedding_dim is None:
            del found["embedding_dim"]
        found[_rate_name(settings.sparse_optimizer)] = found.pop("sparse_learning_rate")
        return found

    @staticmethod
    def settings(parameters: dict[str, Any]) -> Settings | None:
        """Settings from what `suggest` proposed; None if it did not come to its end."""
        found = dict(parameters)
        if "epochs" not in found:
            return None
        rate = found.pop(_rate_name(found["sparse_optimizer"]))
        return Settings(sparse_learning_rate=rate, **found)


def _rate_name(optimizer: str) -> str:
    # One name for all would mix rates of optimisers that differ by a factor of ten.
    return f"sparse_learning_rate of {optimizer}"


def _about(trial: Trial, name: str, middle: float) -> float:
    return trial.suggest_float(name, middle / _REACH, middle * _REACH, log=True)
