"""State dicts of sharded float models, saved by real ranks, as trainers with TorchRec save them."""

from __future__ import annotations

import warnings
from pathlib import Path

import msgspec
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import HuggingFaceStorageWriter
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.types import ShardingEnv

from dlrm_factory.config import DLRMDeclaration
from dlrm_factory.factory import DLRMFactory
from dlrm_factory.model.model import load_dense, make_model
from dlrm_factory.model.shard import make_sharders, process_group
from dlrm_factory.weights.loading import fill_float_tables
from dlrm_factory.weights.rows import StateDictRows
from support.batches import random_state
from support.sharding import declared, mixed_shardings

FP32 = ("fp32", "fp32", "fp32")
# By name: the declaration, and whether the tables are DTensors. Weights are random_state's.
MODELS: dict[str, tuple[DLRMDeclaration, bool]] = {
    "table_wise": (declared("table_wise", "sum", FP32), False),
    "mixed": (mixed_shardings(), False),  # row_wise, column_wise, data_parallel
    "dtensor_row_wise": (declared("row_wise", "sum", FP32), True),
    "dtensor_mixed": (mixed_shardings(), True),
}


def save_all(folder: Path) -> None:
    """Write for each model FOLDER/NAME.rank<R>.pt and a FOLDER/NAME.dcp; one as a folder of safetensors, too."""
    group = process_group("cpu")
    for name, (declaration, as_dtensor) in MODELS.items():
        state = _state(declaration, group, as_dtensor=as_dtensor)
        torch.save(state, folder / f"{name}.rank{dist.get_rank()}.pt")
        save_folder({"model": state}, folder / f"{name}.dcp")
        if name == "dtensor_row_wise":  # its writer loses all but one of a rank's shards of one table
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                writer = HuggingFaceStorageWriter(str(folder / f"{name}.safetensors"), save_distributed=True)
                dcp.save(state, storage_writer=writer)


def save_folder(state: dict[str, object], folder: Path) -> None:
    """A folder of torch.distributed.checkpoint, by all ranks or by this process alone."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save(state, checkpoint_id=str(folder))


def _state(
    declaration: DLRMDeclaration, group: dist.ProcessGroup, *, as_dtensor: bool
) -> dict[str, torch.Tensor]:
    weights = random_state(declaration)
    if not as_dtensor:
        return DLRMFactory(declaration).build(mode="float", weights=weights).model.state_dict()
    model = make_model(declaration)
    load_dense(model, weights)
    ranks = msgspec.structs.replace(declaration.sharding, world_size=group.size())
    plan = DLRMFactory(msgspec.structs.replace(declaration, sharding=ranks)).plan(mode="float")
    sharded = DistributedModelParallel(
        model,
        env=ShardingEnv(group.size(), group.rank(), group, output_dtensor=True),
        device=torch.device("cpu"),
        plan=plan.sharding_plan,
        sharders=make_sharders("float"),
        init_data_parallel=group.size() > 1,
    )
    fill_float_tables(sharded, StateDictRows(declaration, weights))
    return sharded.state_dict()
