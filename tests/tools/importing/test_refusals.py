"""Refusals of files that cannot be loaded safely, or are not the model: each with its reason, and nothing runs."""

from __future__ import annotations

import os
import pickle
import shutil
import warnings
import zipfile

import msgspec
import pytest
import torch
from safetensors.torch import save_file
from support.batches import random_state
from support.sharded_files import save_folder
from torch import nn

from dlrm_factory.config import tiny
from dlrm_factory.errors import WeightsError
from dlrm_factory.model.model import table_weight_key
from dlrm_factory.tools.importing import first_declaration, import_weights

USERS = table_weight_key("t_user_id")


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def refused(paths, match, tmp_path, declaration=None):
    with pytest.raises(WeightsError, match=match) as error:
        import_weights(paths, declaration or tiny(), tmp_path / "c.safetensors")
    assert not (tmp_path / "c.safetensors").exists()
    assert [path for path in tmp_path.iterdir() if path.name.startswith(".")] == []  # nothing left on the way
    return str(error.value)


def test_a_pickled_program_does_not_run(tmp_path):
    trap = tmp_path / "sprung"
    torch.save({**random_state(tiny()), "note": Trap(trap)}, tmp_path / "w.pt")
    text = refused([tmp_path / "w.pt"], r"names posix.mkdir, which could run", tmp_path)
    assert "import torch.distributed.checkpoint as dcp" in text
    assert not trap.exists()


def test_a_whole_module(tmp_path):
    torch.save(nn.Linear(2, 2), tmp_path / "w.pt")
    refused([tmp_path / "w.pt"], r"names torch.nn.modules.linear.Linear, which could run", tmp_path)


def test_a_torchscript_program(tmp_path):
    with zipfile.ZipFile(tmp_path / "w.pt", "w") as archive:
        archive.writestr("w/constants.pkl", b"")
        archive.writestr("w/code/__torch__.py", b"")
    refused([tmp_path / "w.pt"], "TorchScript program", tmp_path)


def test_a_plain_pickle(tmp_path):
    (tmp_path / "w.pt").write_bytes(pickle.dumps({"a": Trap(tmp_path / "sprung")}))
    refused([tmp_path / "w.pt"], "is not a file of torch.save", tmp_path)
    assert not (tmp_path / "sprung").exists()


def test_a_zip_bomb(tmp_path):
    torch.save(random_state(tiny()), tmp_path / "a.pt")
    with zipfile.ZipFile(tmp_path / "a.pt") as read, zipfile.ZipFile(tmp_path / "w.pt", "w") as write:
        for name in read.namelist():
            write.writestr(name, read.read(name), compress_type=zipfile.ZIP_DEFLATED)
    refused([tmp_path / "w.pt"], "holds packed members", tmp_path)


def test_a_tensor_larger_than_its_memory(tmp_path):
    """A petabyte in four bytes: strides of 0."""
    state = {**random_state(tiny()), USERS: torch.zeros(1).expand(1 << 30, 1 << 18)}
    torch.save(state, tmp_path / "w.pt")
    refused([tmp_path / "w.pt"], f"{USERS} is larger than the memory it was saved with", tmp_path)


def folder_with_metadata(tmp_path, metadata):
    folder = tmp_path / "saved"
    save_folder(random_state(tiny()), folder)
    (folder / ".metadata").write_bytes(metadata)
    return folder


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_a_malicious_index_does_not_run(protocol, tmp_path):
    folder = folder_with_metadata(tmp_path, pickle.dumps(Trap(tmp_path / "sprung"), protocol=protocol))
    refused([folder], r"names posix.mkdir, which could run|is damaged \(ValueError: opcode", tmp_path)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    "name",
    [
        "builtins eval",
        "os system",
        "builtins getattr",
        "torch load",
        "torch.serialization load",
        "copyreg _reconstructor",
    ],
)
def test_an_index_may_name_nothing_else(name, tmp_path):
    module, attribute = name.split()
    folder = folder_with_metadata(tmp_path, f"\x80\x02c{module}\n{attribute}\n.".encode("latin1"))
    refused(
        [folder], f"names {module}.{attribute}, which could run when it is loaded, so it is not", tmp_path
    )


def test_an_index_that_takes_memory(tmp_path):
    # Puts 0 at place 4,000,000,000 of the memo, which is an array.
    refused(
        [folder_with_metadata(tmp_path, b"\x80\x02K\x00r\x00\x28\x6b\xee.")], "a memo too large", tmp_path
    )


def test_an_index_that_is_no_index(tmp_path):
    refused(
        [folder_with_metadata(tmp_path, pickle.dumps({"a": 1}))], "does not hold a checkpoint's", tmp_path
    )


def changed_index(tmp_path, **changes):
    folder = tmp_path / "saved"
    save_folder(random_state(tiny()), folder)
    with (folder / ".metadata").open("rb") as file:
        metadata = pickle.load(file)  # noqa: S301
    for index, info in metadata.storage_data.items():
        if index.fqn == USERS:
            for name, value in changes.items():
                setattr(info, name, value)
    with (folder / ".metadata").open("wb") as file:
        pickle.dump(metadata, file)
    return folder


@pytest.mark.parametrize("place", ["../w.pt", "/etc/passwd", "a/../../w.pt"])
def test_a_place_outside_of_the_folder(place, tmp_path):
    refused([changed_index(tmp_path, relative_path=place)], "which is outside of the folder", tmp_path)


def test_a_link_out_of_the_folder(tmp_path):
    folder = changed_index(tmp_path)
    data = next(folder.glob("*.distcp"))
    shutil.move(data, tmp_path / "elsewhere")
    data.symlink_to(tmp_path / "elsewhere")
    refused([folder], r"is a link to .*elsewhere, outside of the folder", tmp_path)


def test_a_chunk_of_another_shape(tmp_path):
    folder = changed_index(tmp_path)
    with (folder / ".metadata").open("rb") as file:
        metadata = pickle.load(file)  # noqa: S301
    found = {index.fqn: info for index, info in metadata.storage_data.items()}
    other = found[table_weight_key("t_item_id")]
    shutil.rmtree(folder)
    folder = changed_index(tmp_path, offset=other.offset, length=other.length)
    refused([folder], r"t_user_id.weight is not the \[1000, 8\] torch.float32", tmp_path)


def test_wrong_weights_are_listed_by_name(tmp_path):
    state = random_state(tiny())
    state["stranger"] = torch.zeros(1)
    state[USERS] = torch.zeros(2, 8)
    del state["over_arch.model.1.bias"]
    torch.save(state, tmp_path / "w.pt")
    text = refused([tmp_path / "w.pt"], "its weights are not the declared model's", tmp_path)
    assert text.splitlines()[1:] == [
        "  missing: over_arch.model.1.bias [1]",
        "  not of this model: stranger [1]",
        f"  {USERS}: is [2, 8], the declaration says [1000, 8]",
    ]


def test_a_long_list_is_cut_short(tmp_path):
    torch.save(
        {**random_state(tiny()), **{f"extra_{i}": torch.zeros(1) for i in range(25)}}, tmp_path / "w.pt"
    )
    lines = refused([tmp_path / "w.pt"], "declared model's", tmp_path).splitlines()
    assert len(lines) == 22
    assert lines[-1] == "  and 5 more"


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_number_that_is_none(number, tmp_path):
    state = random_state(tiny())
    state[USERS][700, 3] = number
    torch.save(state, tmp_path / "w.pt")
    refused([tmp_path / "w.pt"], f"{USERS}: holds NaN or infinity in rows 0 to 999", tmp_path)


def test_a_number_too_large_for_float32(tmp_path):
    state = random_state(tiny())
    state[USERS] = state[USERS].double() * 1e300
    torch.save(state, tmp_path / "w.pt")
    refused([tmp_path / "w.pt"], f"{USERS}: holds NaN or infinity", tmp_path)


def test_quantised_weights(tmp_path):
    state = random_state(tiny())
    torch.save({**state, USERS: state[USERS].to(torch.uint8)}, tmp_path / "w.pt")
    refused([tmp_path / "w.pt"], f"{USERS}: is torch.uint8, not a float weight", tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch is about to give them up
        state[USERS] = torch.quantize_per_tensor(state[USERS], 0.1, 0, torch.qint8)
    torch.save(state, tmp_path / "w.pt")
    refused([tmp_path / "w.pt"], f"{USERS} is quantised", tmp_path)


def test_sparse_tensors(tmp_path):
    torch.save({**random_state(tiny()), USERS: torch.zeros(1000, 8).to_sparse()}, tmp_path / "w.pt")
    refused([tmp_path / "w.pt"], f"{USERS} is a torch.sparse_coo tensor", tmp_path)


def test_no_weights_at_all(tmp_path):
    torch.save({"epoch": 3}, tmp_path / "w.pt")
    refused([tmp_path / "w.pt"], "holds no tensors", tmp_path)
    torch.save([torch.zeros(1)], tmp_path / "w.pt")
    refused([tmp_path / "w.pt"], "holds a list, not a state dict", tmp_path)
    refused([tmp_path / "nothing.pt"], "there is no such file", tmp_path)
    (tmp_path / "folder").mkdir()
    refused([tmp_path / "folder"], "has neither .metadata nor weights", tmp_path)
    refused([tmp_path / "folder", tmp_path / "w.pt"], "is a folder; give one folder, or files", tmp_path)


def test_dicts_that_hold_each_other(tmp_path):
    """1,000 keys in each of seven levels, in a file of some kilobytes."""
    inner: dict[str, object] = {"a": 1}
    for _ in range(6):
        inner = {f"{i}": inner for i in range(1000)}
    torch.save(inner, tmp_path / "w.pt")
    refused([tmp_path / "w.pt"], "holds more than 1,000,000 values", tmp_path)


def test_weights_that_are_there_twice(tmp_path):
    state = random_state(tiny())
    torch.save({"model": state, "module": state}, tmp_path / "w.pt")
    refused([tmp_path / "w.pt"], "holds weights twice; save one model", tmp_path)


def test_the_file_itself_as_output(tmp_path):
    save_file(random_state(tiny()), tmp_path / "c.safetensors")
    with pytest.raises(WeightsError, match="is the file to import"):
        import_weights([tmp_path / "c.safetensors"], tiny(), tmp_path / "c.safetensors")


def test_standardised_features_need_their_statistics(tmp_path):
    torch.save(random_state(tiny()), tmp_path / "w.pt")
    dense = [
        msgspec.structs.replace(tiny().dense_features[0], transform="standardize"),
        *tiny().dense_features[1:],
    ]
    declaration = msgspec.structs.replace(tiny(), dense_features=dense)
    refused([tmp_path / "w.pt"], "price: is standardised", tmp_path, declaration)


def test_no_declaration_can_be_derived(tmp_path):
    torch.save({"a": torch.zeros(2, 2)}, tmp_path / "w.pt")
    with pytest.raises(WeightsError, match="write the declaration by hand"):
        first_declaration([tmp_path / "w.pt"], tmp_path)
    shared = msgspec.structs.replace(
        tiny(),
        sparse_features=[
            *tiny().sparse_features,
            msgspec.structs.replace(tiny().sparse_features[1], name="last_id"),
        ],
    )
    torch.save(random_state(shared), tmp_path / "w.pt")
    with pytest.raises(WeightsError, match="some tables serve several features"):
        first_declaration([tmp_path / "w.pt"], tmp_path)
