"""Code of the user's own: when it runs, what it may import, and what is said when it does not fit."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from dlrm_factory.config import DLRMDeclaration, ModuleArchitecture, Output, read_declaration, tiny
from dlrm_factory.config.trust import TRUST_VARIABLE, is_trusted, trust_code
from dlrm_factory.errors import ConfigError, ModuleError, UntrustedCodeError
from dlrm_factory.factory import DLRMFactory
from dlrm_factory.model.model import make_model

GOOD = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.head = nn.Linear(2, 1)

    def forward(self, dense):
        return self.head(dense)
"""


@pytest.fixture(autouse=True)
def _no_trust(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TRUST_VARIABLE, "")


def declared(
    code: str, arguments: dict[str, Any] | None = None, outputs: list[Output] | None = None
) -> DLRMDeclaration:
    """The preset tiny with the class Net of ``code``, which is trusted."""
    architecture = ModuleArchitecture(
        module="net.py:Net", arguments=arguments or {}, sources={"net.py": textwrap.dedent(code)}
    )
    found = msgspec.structs.replace(
        tiny(),
        architecture=architecture,
        dense_arch_layer_sizes=None,
        over_arch_layer_sizes=None,
        outputs=outputs,
    )
    trust_code(found)
    return found


def forward(code: str) -> str:
    """``GOOD`` with another forward, whose first line is line 10 of net.py."""
    return (
        GOOD[: GOOD.index("    def forward")] + textwrap.indent(textwrap.dedent(code).strip(), "    ") + "\n"
    )


def ask(declaration: DLRMDeclaration, samples: int = 3) -> torch.Tensor:
    model = make_model(declaration)
    dense = torch.ones(samples, len(declaration.dense_features))
    found: torch.Tensor = model.net(dense, torch.ones(samples, declaration.pooled_columns))
    return found


def test_nothing_runs_that_is_not_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = tmp_path / "ran"
    found = declared(f"open({str(ran)!r}, 'w').close()\n{GOOD}")
    monkeypatch.setenv(TRUST_VARIABLE, "")
    assert not is_trusted(found)
    assert DLRMFactory(found).plan().tables
    for run in (lambda: make_model(found), lambda: DLRMFactory(found).build()):
        with pytest.raises(UntrustedCodeError, match=r"net\.py.*--trust-code"):
            run()
    assert not ran.exists()
    trust_code(found)
    make_model(found)
    assert ran.exists()


def test_other_code_is_other_trust() -> None:
    found = declared(GOOD)
    module = found.module
    assert module is not None
    changed = msgspec.structs.replace(module, sources={"net.py": GOOD + "\n# changed\n"})
    assert is_trusted(found)
    assert not is_trusted(msgspec.structs.replace(found, architecture=changed))


def test_files_beside_the_declaration_are_read_and_imported(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text("from .layers import Net\n")
    (tmp_path / "layers.py").write_text(GOOD)
    text = (Path(__file__).parents[1] / "models" / "nets" / "dcn_v2.yaml").read_text().split("\n", 1)[1]
    path = tmp_path / "model.yaml"
    path.write_text('architecture: {module: "net.py:Net", files: [layers.py]}\n' + text)
    found = read_declaration(path)
    trust_code(found)
    assert ask(found).shape == (3, 1)
    (tmp_path / "layers.py").unlink()
    with pytest.raises(ConfigError, match=r'"layers\.py": there is no such file beside the declaration'):
        read_declaration(path)


def test_two_versions_of_a_file_live_side_by_side() -> None:
    one = make_model(declared(GOOD)).net.module
    other = make_model(declared(GOOD.replace("nn.Linear(2, 1)", "nn.Linear(2, 1, bias=False)"))).net.module
    assert set(one.state_dict()) == {"head.weight", "head.bias"}
    assert set(other.state_dict()) == {"head.weight"}


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import torch\n1 / 0\n", r"net\.py cannot be loaded: net\.py:2 \(<module>\): ZeroDivisionError"),
        ("def f(:\n", r"net\.py cannot be loaded: net\.py:1: SyntaxError: invalid syntax$"),
        ("import nothing_of_that_name\n", r"net\.py:1 .*No module named 'nothing_of_that_name'"),
        ("x = 1\n", r'class "Net" of net\.py is not there$'),
        (GOOD.replace("class Net", "class MyNet"), r'class "Net" of net\.py is not there; it has MyNet$'),
        ("exit(3)\n", r"net\.py:1 \(<module>\): SystemExit: 3"),
        ("Net = 1\n", r'class "Net" of net\.py is not a torch\.nn\.Module'),
        (
            GOOD.replace("width=4", "depth"),
            r"made with the declared arguments: net\.py:6 \(__init__\): TypeError: .*missing 1 required .*'depth'",
        ),
        (GOOD.replace("nn.Linear(2, 1)", "nn.Linear(2, 'x')"), r"net\.py:8 \(__init__\): TypeError"),
        (
            forward("def forward(self, prices): return prices"),
            r'net\.py:10: .* takes "prices", which is no input',
        ),
        (forward("def forward(self, **inputs): return 1"), r"net\.py:10: .*name its inputs"),
        (forward("def forward(self): return 1"), r"takes no input"),
    ],
)
def test_a_class_that_cannot_be_made_is_told_by_file_and_line(code: str, message: str) -> None:
    with pytest.raises(ModuleError, match=message):
        make_model(declared(code))


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (
            "def forward(self, dense): return dense @ dense",
            r"Net cannot score: net\.py:10 \(forward\): RuntimeError",
        ),
        (
            "def forward(self, dense): return dense",
            r'^net\.py:10: forward of Net returns \(3, 2\) as output "score" for B = 3 samples; return \[B\]',
        ),
        ("def forward(self, dense): return dense[:1, 0]", r"returns \(1,\) as output"),
        ("def forward(self, dense): return 1.0", r"returns a float; return logits \[B\], or a dict"),
        ("def forward(self, dense): return dense[:, 0].long()", r"torch\.int64 .*return floats"),
        ('def forward(self, dense): return {"buy": dense[:, 0]}', r'an output "buy" that is not declared'),
        ("def forward(self, dense): return {}", r'net\.py:10: .* no output "score", which is declared'),
        ("def forward(self, dense): exit(3)", r"net\.py:10 \(forward\): SystemExit: 3"),
    ],
)
def test_outputs_that_are_not_the_declared_ones_are_told(code: str, message: str) -> None:
    with pytest.raises(ModuleError, match=message):
        ask(declared(forward(code)))


def test_several_outputs_are_columns_in_declared_order() -> None:
    code = 'def forward(self, dense): return {"v": dense * 2, "b": dense[:, 0] * 3, "a": dense[:, :1]}'
    outputs = [
        Output(name="a", label="a"),
        Output(name="v", kind="vector", size=2),
        Output(name="b", label="b"),
    ]
    found = declared(forward(code), outputs=outputs)
    assert ask(found, 2).tolist() == [[1, 2, 2, 3]] * 2
    assert [found.columns_of(name) for name in "avb"] == [slice(0, 1), slice(1, 3), slice(3, 4)]
    with pytest.raises(ModuleError, match=r"one tensor, and 3 outputs are declared \(a, v, b\)"):
        ask(declared(GOOD, outputs=outputs))


def test_pooled_vectors_of_several_widths_come_by_name() -> None:
    found = declared(forward("def forward(self, pooled): return pooled.sum((1, 2))"))
    assert ask(found).shape == (3, 1)
    tables = [*found.tables[:-1], msgspec.structs.replace(found.tables[-1], embedding_dim=4)]
    with pytest.raises(ModuleError, match=r"embedding_dims \[4, 8\]; take pooled_by_name"):
        make_model(msgspec.structs.replace(found, tables=tables))


def test_a_weight_named_as_the_tables_is_refused() -> None:
    with pytest.raises(ModuleError, match="sparse_arch is the name of the tables"):
        make_model(declared(GOOD.replace("head", "sparse_arch")))
    counter = "self.register_buffer('n', torch.zeros(1, dtype=torch.int64));self.head ="
    with pytest.raises(ModuleError, match=r"torch\.int64; weights are floats"):
        make_model(declared(GOOD.replace("self.head =", counter)))
