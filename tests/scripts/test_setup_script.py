"""scripts/setup run in a copied tree, with a Python that only pretends to make .venv and to run pip."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Stands for the machine's Python and for .venv's. Each call of pip or of a check is written to calls.txt, and
# the variables FAKE_… say what they answer; everything else is run by the real Python.
FAKE_PYTHON = r"""#!/bin/bash
calls=@TREE@/calls.txt
words=" $* "
case $words in
    *" -m venv "*)
        echo "venv $*" >>"$calls"
        [ -z "${FAKE_NO_ENSUREPIP:-}" ] || [[ $words == *--without-pip* ]] || exit 1
        for last; do :; done
        [[ $words != *--clear* ]] || rm -rf "$last"
        mkdir -p "$last/bin" && cp "$0" "$last/bin/python"; exit ;;
    *" -m pip "*)
        echo "$*" | sed 's/.*-m pip/pip/' >>"$calls"
        case $words in *--index-url*) exit "${FAKE_PYTORCH_INDEX:-0}" ;; esac
        [[ $words != *" torch=="* ]] || [ -z "${FAKE_NO_TORCH:-}" ] || { echo "$FAKE_NO_TORCH"; exit 1; }
        [[ $words != *common.txt* ]] || [ -z "${FAKE_PIP_ERROR:-}" ] || { echo "$FAKE_PIP_ERROR"; exit 1; }
        [[ $words != *uninstall* ]] || touch @TREE@/repaired
        [[ $words != *java.txt* ]] || touch @TREE@/java_installed
        exit 0 ;;
    *verify.py*)
        [ -z "${FAKE_DAMAGE:-}" ] || [ -e @TREE@/repaired ] || { echo "$FAKE_DAMAGE"; exit 1; }
        exit 0 ;;
    *" -m dlrm_factory.tools.java "*)
        [ -z "${FAKE_NO_JAVA:-}" ] || [ -e @TREE@/java_installed ] || exit 1
        echo /bin/sh; exit 0 ;;
    *" -m dlrm_factory.tools.stack "*)
        echo stack >>"$calls"
        [ -z "${FAKE_BROKEN:-}" ] || { echo "$FAKE_BROKEN" >&2; exit 1; }
        echo "OK: fake"; exit 0 ;;
    *find_gpu.py*) echo find_gpu >>"$calls"; echo "${FAKE_GPU:-cpu no working NVIDIA GPU here}"; exit 0 ;;
    *version_info*print* | *print*version_info*) echo "${FAKE_SERIES:-3.11}"; exit 0 ;;
    *version_info*) exit "${FAKE_TOO_OLD:-0}" ;;
    *"import torch"*) exit 0 ;;
esac
exec @REAL@ "$@"
"""


@dataclass(frozen=True)
class Tree:
    """A copy of what scripts/setup reads, and the fake Python."""

    root: Path
    env: dict[str, str] = field(default_factory=dict)

    @property
    def choice(self) -> Path:
        return self.root / ".venv" / "setup.choice"

    @property
    def stamp(self) -> Path:
        return self.root / ".venv" / "setup.stamp"

    def setup(self, *arguments: str, **fakes: str) -> subprocess.CompletedProcess[str]:
        """Runs scripts/setup; ``calls`` then holds what it did this time."""
        (self.root / "calls.txt").write_text("")
        return subprocess.run(
            [str(self.root / "scripts" / "setup"), *arguments],
            env={**os.environ, "PYTHON": str(self.root / "python"), "CI": "true", **self.env, **fakes},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )

    @property
    def calls(self) -> list[str]:
        return (self.root / "calls.txt").read_text().splitlines()


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    root = tmp_path / "tree with a space"
    shutil.copytree(ROOT / "scripts", root / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", root)
    write_fake_python(root)
    return Tree(root)


def write_fake_python(root: Path) -> None:
    fake = root / "python"
    quoted = str(root).replace(" ", "\\ ")
    fake.write_text(FAKE_PYTHON.replace("@TREE@", quoted).replace("@REAL@", sys.executable))
    fake.chmod(0o755)


def test_first_run_goes_through_every_step_in_order(tree: Tree) -> None:
    done = tree.setup()
    assert done.returncode == 0, done.stderr
    steps = [re.sub(r"\S*/(?=[a-z]+\.txt)", "", call) for call in tree.calls]
    assert steps[0] == "find_gpu"
    assert steps[1].startswith("venv ")
    assert steps[2] == "pip install --no-deps torch==2.13.0+cpu"
    assert steps[3].startswith("pip install --no-deps -r ")
    assert [word for word in steps[3].split() if word.endswith(".txt")][-2:] == ["common.txt", "dev.txt"]
    assert steps[4].startswith("pip install --no-deps --no-build-isolation -e ")
    assert steps[5:] == ["stack"]
    assert done.stdout.splitlines()[-1].startswith("setup: done in ")


def test_second_run_has_nothing_to_do(tree: Tree) -> None:
    tree.setup()
    done = tree.setup()
    assert (done.returncode, done.stdout) == (0, "setup: nothing to do (cpu stack)\n")
    assert tree.calls == []


@pytest.mark.parametrize("changed", ["scripts/lock/common.txt", "scripts/lock/cpu.txt", "pyproject.toml"])
def test_a_changed_lock_is_installed(tree: Tree, changed: str) -> None:
    tree.setup()
    with (tree.root / changed).open("a") as file:
        file.write("# changed\n")
    tree.setup()
    assert "stack" in tree.calls
    assert not any(call.startswith("venv") for call in tree.calls)
    tree.setup()
    assert tree.calls == []


def test_wrong_packages_are_noticed_by_a_run_with_nothing_else_to_do(tree: Tree) -> None:
    tree.setup()
    done = tree.setup(FAKE_DAMAGE="fbgemm-gpu is installed over fbgemm-gpu-cpu")
    assert done.returncode == 0, done.stderr
    assert "setup: repairing fbgemm: fbgemm-gpu is installed over fbgemm-gpu-cpu" in done.stdout
    uninstall = tree.calls.index("pip uninstall -y fbgemm-gpu fbgemm-gpu-cpu")
    assert tree.calls[uninstall + 1].endswith("scripts/lock/cpu.txt")


def test_a_stack_that_was_asked_for_is_kept(tree: Tree) -> None:
    assert tree.setup("--cuda").returncode == 0
    assert "find_gpu" not in tree.calls
    assert any("torch==2.13.0,!=2.13.0+cpu" in call for call in tree.calls)
    assert tree.setup().stdout == "setup: nothing to do (cuda stack)\n"
    done = tree.setup("--auto")
    assert "making .venv anew: it holds the other stack" in done.stdout
    assert tree.setup().stdout == "setup: nothing to do (cpu stack)\n"


def test_an_interrupted_run_is_taken_up_with_the_same_choice(tree: Tree) -> None:
    assert tree.setup("--cuda", FAKE_PIP_ERROR="ERROR: interrupted").returncode == 1
    done = tree.setup()
    assert done.returncode == 0
    assert "making .venv" not in done.stdout
    assert "stack=cuda" in tree.choice.read_text()


def test_a_gpu_is_found(tree: Tree) -> None:
    done = tree.setup(FAKE_GPU="cuda 1 NVIDIA GPU here")
    assert "setup: cuda stack: 1 NVIDIA GPU here" in done.stdout
    assert "stack=cuda" in tree.choice.read_text()


def test_a_moved_tree_is_made_anew(tree: Tree) -> None:
    tree.setup()
    moved = tree.root.rename(tree.root.with_name("moved"))
    write_fake_python(moved)
    shutil.copy(moved / "python", moved / ".venv" / "bin" / "python")
    done = Tree(moved).setup()
    assert "making .venv anew: it was made in another folder" in done.stdout
    assert f"root={moved}\n" in Tree(moved).choice.read_text()


def test_a_venv_whose_python_is_gone_is_made_anew(tree: Tree) -> None:
    tree.setup()
    (tree.root / ".venv" / "bin" / "python").unlink()
    assert "making .venv anew: its Python does not run" in tree.setup().stdout


def test_torch_comes_from_pytorchs_own_index_at_last(tree: Tree) -> None:
    missing = "ERROR: No matching distribution found for torch==2.13.0+cpu"
    assert tree.setup(FAKE_NO_TORCH=missing).returncode == 0
    tries = [call for call in tree.calls if "torch==" in call]
    assert tries[1] == (
        "pip install --no-deps --index-url https://download.pytorch.org/whl/cpu torch==2.13.0+cpu"
    )
    done = tree.setup("--force", FAKE_NO_TORCH=missing, FAKE_PYTORCH_INDEX="1")
    assert done.returncode == 1
    assert "neither the configured indexes nor https://download.pytorch.org/whl/cpu give torch" in done.stderr


@pytest.mark.parametrize(
    ("pip_says", "says"),
    [
        (
            "ERROR: No matching distribution found for xxhash==9",
            "pip finds no wheel of xxhash==9 for Python 3.11 on",
        ),
        ("ERROR: Could not install: [Errno 28] No space left on device", "the disk is full: free some room"),
        (
            "Retry: NameResolutionError(…)\nERROR: No matching distribution found for rich==1",
            "pip cannot reach its package index: check the network, the proxy",
        ),
        ("ERROR: something new", "pip failed: ERROR: something new (all of pip's words: "),
        ("Killed", "pip failed: "),
    ],
)
def test_a_failing_pip_is_one_sentence_and_leaves_no_stamp(tree: Tree, pip_says: str, says: str) -> None:
    tree.setup()
    done = tree.setup("--force", FAKE_PIP_ERROR=pip_says)
    assert done.returncode == 1
    assert done.stderr.startswith(f"setup: error: {says}")
    assert done.stderr.count("\n") == 1
    assert not tree.stamp.exists()
    assert tree.setup().stdout.splitlines()[-1].startswith("setup: done in ")


def test_a_broken_stack_fails_the_set_up(tree: Tree) -> None:
    done = tree.setup(FAKE_BROKEN="fbgemm_gpu is the CUDA build")
    assert done.returncode == 1
    assert done.stderr.startswith(
        "fbgemm_gpu is the CUDA build\nsetup: error: the installed packages do not work"
    )
    assert not tree.stamp.exists()


def test_java_is_installed_where_there_is_none(tree: Tree) -> None:
    tree.setup()
    assert not any("java.txt" in call for call in tree.calls)
    done = tree.setup("--force", FAKE_NO_JAVA="yes")
    assert done.returncode == 0
    assert any(call.endswith("scripts/lock/java.txt") for call in tree.calls)


def test_pip_stands_in_for_a_missing_ensurepip(tree: Tree) -> None:
    done = tree.setup(FAKE_NO_ENSUREPIP="yes")
    assert done.returncode == 0, done.stderr
    assert any("--without-pip" in call for call in tree.calls)
    assert any("install --target" in call for call in tree.calls)


def test_an_old_python_and_an_unknown_option_are_refused(tree: Tree) -> None:
    done = tree.setup(FAKE_TOO_OLD="1")
    assert done.returncode == 1
    assert done.stderr.endswith("is not a Python 3.10 or newer: unset it, or name another one.\n")
    done = tree.setup("--gpu")
    assert done.returncode == 1
    assert done.stderr.endswith("setup: error: unknown option --gpu\n")
    assert tree.setup("--help").stdout.startswith("usage: scripts/setup")
