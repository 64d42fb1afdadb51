"""Names of weights without what wrappers put before them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["OPTIMIZERS", "WRAPPERS", "Stripped", "strip_prefixes"]

# The attribute or the key under which each of these keeps the model.
WRAPPERS: dict[str, str] = {
    "model": "DLRMTrain, and many training loops",
    "module": "DataParallel, DistributedDataParallel, DistributedModelParallel",
    "_dmp_wrapped_module": "DistributedModelParallel",
    "_fsdp_wrapped_module": "FullyShardedDataParallel",
    "_orig_mod": "torch.compile",
    "state_dict": "dlrm_s_pytorch, PyTorch Lightning",
    "model_state_dict": "PyTorch's tutorials",
    "model_state": "training loops",
    "train_model": "training loops",
    "dlrm": "training loops",
    "net": "training loops",
    "app": "torch.distributed.checkpoint's examples",
}
# Under these, names of weights are those of optimiser state.
OPTIMIZERS = ("optimizer", "optimizers", "optimizer_state_dict", "opt_state_dict", "optim", "opt")

_ROOTS = ("sparse_arch", "dense_arch", "inter_arch", "over_arch", "emb_l", "bot_l", "top_l", "v_W_l")
_ANCHOR = re.compile(rf"(?:^|\.)(?:{'|'.join(_ROOTS)})\.")


@dataclass(frozen=True, kw_only=True)
class Stripped:
    """Names by their bare form.

    Fields:
        names: bare name → the source's.
        ignored: the source's names of what is not the model's.
        doubles: two names of the source with one bare form.
    """

    names: dict[str, str]
    ignored: list[str]
    doubles: list[tuple[str, str]]


def strip_prefixes(names: Iterable[str]) -> Stripped:
    """Take off the wrappers' prefixes.

    Where the model lies under a prefix, what lies elsewhere is not the model's, unless it looks like a model's weight.
    """
    names = list(names)
    prefixes = {name: _prefix(name) for name in names}
    counts = Counter(prefix for prefix in prefixes.values() if prefix is not None)
    main = counts.most_common(1)[0][0] if counts else ""
    found: dict[str, str] = {}
    ignored, doubles = [], []
    for name, prefix in prefixes.items():
        is_anchored = _ANCHOR.search(name) is not None
        if name.split(".", 1)[0] in OPTIMIZERS or (not is_anchored and main and not name.startswith(main)):
            ignored.append(name)
            continue
        bare = name.removeprefix(main if prefix is None else prefix)
        if bare in found:
            doubles.append((found[bare], name))
        else:
            found[bare] = name
    return Stripped(names=found, ignored=ignored, doubles=doubles)


def _prefix(name: str) -> str | None:
    """What stands before the model's own name, if it is wrappers alone; None if it is not a model's weight."""
    match = _ANCHOR.search(name)
    if match is None:
        return None
    start = match.start() + (name[match.start()] == ".")
    prefix = name[:start]
    return prefix if all(part in WRAPPERS for part in prefix.split(".")[:-1]) else None
