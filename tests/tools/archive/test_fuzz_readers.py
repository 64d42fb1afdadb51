"""Files of a stranger: each reader gives one of our errors, soon, and never runs what is in it.

Every damage comes from one seed. A reader that takes a damaged file must read it just as it is; what must never happen
is another exception, a crash, or memory for sizes that the file only claims.
"""

from __future__ import annotations

import io
import json
import random
import resource
import shutil
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import xxhash
from safetensors.torch import load_file, save_file
from support.batches import random_batch, random_state
from support.depth import examples
from support.raw_features import raw_declaration, raw_vocabularies

from dlrm_factory.config import parse_declaration, read_declaration
from dlrm_factory.errors import ArchiveError, ConfigError, DLRMError, WeightsError
from dlrm_factory.features import Vocabularies
from dlrm_factory.goldens import golden_batch, read_goldens
from dlrm_factory.scorer import Scorer, probabilities
from dlrm_factory.tools.archive.listing import read_archive_listing
from dlrm_factory.tools.archive.reading import read_archive_declaration, unpacked_weights
from dlrm_factory.tools.archive.sealing import archive_model
from dlrm_factory.weights.checkpoint import open_checkpoint, save_checkpoint
from dlrm_factory.weights.held_out import HeldOut, read_held_out
from dlrm_factory.weights.seal import read_seal
from dlrm_factory.weights.sealed import SealedWeights, read_dense, seal_folder
from dlrm_factory.weights.table_file import TableFile

ROUNDS = examples(150)
OUR_ERRORS = (WeightsError, ArchiveError, ConfigError)
DECLARATION = raw_declaration()
Reader = Callable[[Path], object]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoint with every kind of feature, and held-out samples."""
    path = tmp_path_factory.mktemp("fuzz") / "c.safetensors"
    batch = random_batch(DECLARATION, 30)
    logits = batch.dense[:, 0]
    held_out = HeldOut(batch=batch, labels=(logits > 0).astype("uint8")[:, None], logits=logits[:, None])
    save_checkpoint(
        path, DECLARATION, random_state(DECLARATION), vocabularies=raw_vocabularies(), held_out=held_out
    )
    return path


@pytest.fixture(scope="module")
def archived(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fuzz") / "dlrm.mar"
    archive_model(checkpoint, path)
    return path


@pytest.fixture(scope="module")
def weights(archived: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with unpacked_weights(archived) as folder:
        return Path(shutil.copytree(folder, tmp_path_factory.mktemp("fuzz") / "weights"))


@pytest.fixture(autouse=True)
def little_memory() -> Iterator[None]:
    """A reader that believes a size of gigabytes fails here."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (2 << 30), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def damages(data: bytes, seed: str) -> Iterator[bytes]:
    """``data`` with bytes flipped, cut out, cut off, doubled or overwritten, mostly in the heads."""
    rng = random.Random(seed)
    for _ in range(ROUNDS):
        broken = bytearray(data)
        for _ in range(rng.choice((1, 1, 2, 8))):
            span = len(broken) if rng.random() < 0.4 else min(len(broken), 300)
            at = rng.randrange(span) if span else 0
            kind = rng.randrange(6)
            if kind == 0 and broken:
                broken[at] ^= 1 << rng.randrange(8)
            elif kind == 1:
                del broken[at : at + rng.choice((1, 4, 64))]
            elif kind == 2:
                del broken[at:]
            elif kind == 3:
                broken[at:at] = broken[at : at + rng.choice((1, 8, 100))]
            elif kind == 4:
                broken[at : at + 8] = rng.choice(
                    (b"\xff" * 8, bytes(8), struct.pack("<Q", rng.getrandbits(62)))
                )
            else:
                broken[at : at + 4] = rng.choice(
                    (b"[[[[", b"null", b"-1,1", b"1e99", b'""""', b"\x00\xd8\x00\x00")
                )
        yield bytes(broken)


def attempt(read: Callable[[], object]) -> bool:
    """Test whether ``read`` took it; else it gave an error of ours."""
    try:
        read()
    except OUR_ERRORS:
        return False
    return True


READERS: dict[str, Reader] = {
    "declaration.yaml": lambda folder: read_declaration(folder / "declaration.yaml"),
    "dense.safetensors": read_dense,
    "goldens.json": lambda folder: golden_batch(_goldens(folder), DECLARATION, raw_vocabularies()),
    "held_out.safetensors": lambda folder: _held_out(folder).check(DECLARATION, "held-out"),
    "seal.json": read_seal,
    "tables.bin": lambda folder: TableFile(folder / "tables.bin").check(DECLARATION),
    "vocabularies.bin": lambda folder: Vocabularies.map(folder / "vocabularies.bin").check(DECLARATION),
}


def _goldens(folder: Path):
    goldens = read_goldens(folder)
    assert goldens is not None
    return goldens


def _held_out(folder: Path) -> HeldOut:
    held_out = read_held_out(folder)
    assert held_out is not None
    return held_out


@pytest.mark.parametrize("name", READERS)
def test_a_damaged_file_gives_our_error_or_is_read(weights: Path, tmp_path: Path, name: str) -> None:
    data = (weights / name).read_bytes()
    (tmp_path / name).write_bytes(data)
    assert attempt(lambda: READERS[name](tmp_path))
    refused = 0
    for broken in damages(data, name):
        (tmp_path / name).write_bytes(broken)
        refused += not attempt(lambda: READERS[name](tmp_path))
    assert refused > ROUNDS / 5


def test_a_damaged_file_among_sealed_weights_is_always_refused(weights: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(weights, tmp_path / "copy"))
    for name in READERS:
        data = (folder / name).read_bytes()
        if name == "seal.json":
            continue  # white space may change in it
        for broken in list(damages(data, name))[:25]:
            if broken != data:
                (folder / name).write_bytes(broken)
                assert not attempt(lambda: SealedWeights(folder, again=True))
        (folder / name).write_bytes(data)
    assert attempt(lambda: SealedWeights(folder))


@pytest.mark.parametrize("name", ["tables.bin", "vocabularies.bin"])
def test_heads_with_right_checksums_and_wrong_contents(weights: Path, tmp_path: Path, name: str) -> None:
    """Write a file whose checksums are right, as one who means harm does."""
    data = (weights / name).read_bytes()
    length = struct.unpack_from("<Q", data, 8)[0]
    header = json.loads(data[24 : 24 + length])
    rng = random.Random(name)
    for _ in range(ROUNDS):
        changed = json.loads(json.dumps(header))
        _change(changed, rng)
        encoded = json.dumps(changed).encode()
        head = data[:8] + struct.pack("<QQ", len(encoded), xxhash.xxh3_64_intdigest(encoded)) + encoded
        (tmp_path / name).write_bytes(head + data[24 + length :])
        attempt(lambda: READERS[name](tmp_path))
    head = data[:8] + struct.pack("<QQ", 2**62, 0)
    (tmp_path / name).write_bytes(head + data[24:])
    assert not attempt(lambda: READERS[name](tmp_path))


def _change(value: object, rng: random.Random) -> None:
    """One value somewhere in ``value`` becomes another."""
    while True:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        key = rng.choice(keys)
        inner = value[key]
        if isinstance(inner, (dict, list)) and inner and rng.random() < 0.9:
            value = inner
            continue
        value[key] = rng.choice((-1, 0, 1, 2**31, 2**62, 2**64, 1.5, None, "", "x", [], {}, True, inner))
        return


def test_a_vocabulary_with_an_index_that_leads_astray(weights: Path, tmp_path: Path) -> None:
    data = (weights / "vocabularies.bin").read_bytes()
    length = struct.unpack_from("<Q", data, 8)[0]
    start = -(-(24 + length) // 64) * 64
    rng = random.Random(9)
    for _ in range(ROUNDS):
        broken = bytearray(data)
        for _ in range(3):
            at = rng.randrange(start, len(broken) - 4)
            broken[at : at + 4] = rng.choice((b"\xff" * 4, struct.pack("<I", rng.getrandbits(31)), bytes(4)))
        header = json.loads(broken[24 : 24 + length])
        header["xxh3"] = xxhash.xxh3_64_hexdigest(broken[start:])
        encoded = json.dumps(header, separators=(",", ":")).encode()
        assert len(encoded) == length
        broken[8 : 24 + length] = struct.pack("<QQ", length, xxhash.xxh3_64_intdigest(encoded)) + encoded
        (tmp_path / "vocabularies.bin").write_bytes(broken)
        if attempt(lambda: READERS["vocabularies.bin"](tmp_path)):
            found = Vocabularies.map(tmp_path / "vocabularies.bin")
            rows = found.rows(["user_1", "nobody", 4], np.zeros(3, dtype=np.int64))
            assert ((rows >= -1) & (rows < max(found.sizes.values()))).all()


@pytest.mark.parametrize("name", ["dense.safetensors", "held_out.safetensors"])
@pytest.mark.parametrize("length", [2**63, 2**40, 200 << 20, 10])
def test_a_safetensors_header_of_absurd_length(weights: Path, tmp_path: Path, name: str, length: int) -> None:
    data = (weights / name).read_bytes()
    (tmp_path / name).write_bytes(struct.pack("<Q", length) + data[8:])
    assert not attempt(lambda: READERS[name](tmp_path))


def test_held_out_samples_that_point_outside_their_tables(weights: Path, tmp_path: Path) -> None:
    good = load_file(weights / "held_out.safetensors")
    for key, place, value in (
        ("values", 0, 10**12),
        ("values", -1, -1),
        ("lengths", 0, -5),
        ("labels", 0, 7),
    ):
        tensors = {name: tensor.clone() for name, tensor in good.items()}
        tensors[f"held_out.{key}"].view(-1)[place] = value
        save_file(tensors, tmp_path / "held_out.safetensors")
        assert not attempt(lambda: READERS["held_out.safetensors"](tmp_path))
    for key, tensor in good.items():
        for wrong in (tensor[:1].clone(), tensor.double(), tensor[None].clone()):
            save_file({**good, key: wrong}, tmp_path / "held_out.safetensors")
            assert not attempt(lambda: READERS["held_out.safetensors"](tmp_path)), key


def test_a_checkpoint_that_is_damaged(checkpoint: Path, tmp_path: Path) -> None:
    data = checkpoint.read_bytes()
    for broken in damages(data, "checkpoint"):
        (tmp_path / "c.safetensors").write_bytes(broken)
        attempt(lambda: open_checkpoint(tmp_path / "c.safetensors"))
    length = struct.unpack_from("<Q", data)[0]
    header = json.loads(data[8 : 8 + length])
    ours = json.loads(header["__metadata__"]["dlrm"])
    yaml_of_itself = json.dumps({"declaration": "a: &a [*a]"})
    golden_rows = json.dumps({**ours, "golden_rows": "[["})
    for text in (None, "[", '{"declaration": 3}', yaml_of_itself, golden_rows):
        metadata = {} if text is None else {"dlrm": text}
        encoded = json.dumps({**header, "__metadata__": metadata}).encode()
        (tmp_path / "c.safetensors").write_bytes(
            struct.pack("<Q", len(encoded)) + encoded + data[8 + length :]
        )
        assert not attempt(lambda: open_checkpoint(tmp_path / "c.safetensors"))


def test_a_damaged_archive(archived: Path, tmp_path: Path) -> None:
    data = archived.read_bytes()
    rng = random.Random("archive")
    directory = data.rindex(b"PK\x01\x02", 0, data.index(b"PK\x05\x06")) - 4000
    path = tmp_path / "dlrm.mar"

    def read() -> None:
        read_archive_listing(path)
        read_archive_declaration(path)
        with unpacked_weights(path) as folder:
            SealedWeights(folder)

    refused = 0
    for _ in range(ROUNDS):
        broken = bytearray(data)
        for _ in range(rng.choice((1, 2, 8))):
            at = rng.randrange(directory, len(broken)) if rng.random() < 0.8 else rng.randrange(len(broken))
            broken[at : at + 4] = rng.choice(
                (b"\xff" * 4, bytes(4), struct.pack("<I", rng.getrandbits(32)), bytes([broken[at] ^ 1]), b"")
            )
        path.write_bytes(broken)
        refused += not attempt(read)
    assert refused > ROUNDS / 4


BOMBS = {
    "aliases": "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n"
    + "".join(f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12)),
    "lists": "[" * 100_000,
    "mappings": "{a: " * 50_000,
    "indented": "- " * 100_000,
    "keys": "? " * 50_000,
    "itself": "tables: &t [*t]",
    "long": "a" * (17 << 20),
    "code": '!!python/object/apply:os.system ["touch ran"]',
    "date": "- !!timestamp 99999-99-99",
    "boolean": "!!bool maybe",
    "binary": '!!binary "x"',
}


@pytest.mark.parametrize(
    ("name", "message"),
    [("aliases", "with those that its aliases repeat"), ("long", "so it is no declaration")]
    + [(name, "nested more than 50 deep") for name in ("lists", "mappings", "indented", "keys")],
)
def test_yaml_bombs_are_named_before_they_are_built(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_declaration(BOMBS[name])


@pytest.mark.parametrize("text", BOMBS.values(), ids=BOMBS)
def test_yaml_that_is_made_to_harm(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError):
        parse_declaration(text)
    (tmp_path / "declaration.yaml").write_text(text)
    with pytest.raises(ConfigError):
        read_declaration(tmp_path / "declaration.yaml")
    assert [path.name for path in tmp_path.iterdir()] == ["declaration.yaml"]


def test_a_stranger_who_seals_what_they_like_still_cannot_name_rows_outside(
    weights: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(weights, tmp_path / "copy"))
    goldens = json.loads((folder / "goldens.json").read_bytes())
    goldens["requests"][0]["request"] = {"instances": [{"tags": [50]}]}
    (folder / "goldens.json").write_text(json.dumps(goldens))
    seal_folder(folder)
    scorer = Scorer.load(folder)
    with pytest.raises(DLRMError, match="50 is out of range"):
        golden_batch(_goldens(folder), DECLARATION, scorer.vocabularies)
    assert probabilities(scorer.logits(random_batch(DECLARATION, 3))).shape == (3,)


def test_a_name_in_a_zip_that_python_would_clean_is_refused(tmp_path: Path) -> None:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr("C:\\x", "x")
    (tmp_path / "m.mar").write_bytes(made.getvalue())
    with pytest.raises(ArchiveError):
        read_archive_listing(tmp_path / "m.mar")
