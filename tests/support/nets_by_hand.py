"""The same models in NumPy, sample by sample, from the weights and a batch alone: nothing of the product's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

__all__ = ["BY_HAND"]

Weights = Mapping[str, np.ndarray]
Vectors = Mapping[str, np.ndarray]  # of each feature, [ids, D]
ByHand = Callable[[Weights, np.ndarray, Vectors, Mapping[str, str]], dict[str, Any]]


def linear(weights: Weights, name: str, values: np.ndarray) -> np.ndarray:
    return values @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def relu(values: np.ndarray) -> np.ndarray:
    return np.maximum(values, 0)


def softmax(values: np.ndarray, axis: int = -1) -> np.ndarray:
    powers = np.exp(values - values.max(axis=axis, keepdims=True))
    return powers / powers.sum(axis=axis, keepdims=True)


def pool(vectors: np.ndarray, how: str) -> np.ndarray:
    if not len(vectors):
        return np.zeros(vectors.shape[1])
    return vectors.mean(axis=0) if how == "mean" else vectors.sum(axis=0)


def pooled(vectors: Vectors, pooling: Mapping[str, str], names: list[str]) -> list[np.ndarray]:
    return [pool(vectors[name], pooling[name]) for name in names]


def dcn_v2(w: Weights, dense: np.ndarray, vectors: Vectors, pooling: Mapping[str, str]) -> dict[str, Any]:
    first = np.concatenate((dense, *pooled(vectors, pooling, ["user", "tags"])))
    crossed = first
    for i in range(2):
        crossed = first * linear(w, f"crosses.{i}", crossed) + crossed
    deep = relu(linear(w, "deep.0", first))
    return {"score": linear(w, "head", np.concatenate((crossed, deep)))[0]}


def deepfm(w: Weights, dense: np.ndarray, vectors: Vectors, pooling: Mapping[str, str]) -> dict[str, Any]:
    # The features in the order of their tables.
    embedded = relu(linear(w, "dense_arch.model.2", relu(linear(w, "dense_arch.model.0", dense))))
    parts = [embedded, *pooled(vectors, pooling, ["tags", "user"])]
    deep = relu(linear(w, "inter_arch.deep_fm.dense_module.0", np.concatenate(parts)))
    whole = np.concatenate(parts)
    pairs = (whole.sum() ** 2 - (whole**2).sum()) / 2
    return {"score": linear(w, "over_arch.model.0", np.concatenate((embedded, deep, [pairs])))[0]}


def norm(w: Weights, name: str, values: np.ndarray) -> np.ndarray:
    centred = values - values.mean(axis=-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-5)
    return scaled * w[f"{name}.weight"] + w[f"{name}.bias"]


def dlrm_transformer(
    w: Weights, dense: np.ndarray, vectors: Vectors, pooling: Mapping[str, str]
) -> dict[str, Any]:
    embedded = dense
    for i in range(2):
        embedded = relu(linear(w, f"dense_arch.model._mlp.{i}._linear", embedded))
    rows = np.stack([embedded, *pooled(vectors, pooling, ["tags", "user"])])
    layer, dim, heads = "inter_arch.interarch_TE.layers.0", rows.shape[1], 2
    mixed = rows @ w[f"{layer}.self_attn.in_proj_weight"].T + w[f"{layer}.self_attn.in_proj_bias"]
    found = []
    for head in range(heads):
        size = dim // heads
        q, k, v = (mixed[:, part * dim + head * size :][:, :size] for part in range(3))
        found.append(softmax(q @ k.T / np.sqrt(size)) @ v)
    rows = norm(
        w, f"{layer}.norm1", rows + linear(w, f"{layer}.self_attn.out_proj", np.concatenate(found, axis=1))
    )
    forward = linear(w, f"{layer}.linear2", relu(linear(w, f"{layer}.linear1", rows)))
    rows = norm(w, f"{layer}.norm2", rows + forward)
    hidden = relu(linear(w, "over_arch.model.0._mlp.0._linear", rows.reshape(-1)))
    return {"score": linear(w, "over_arch.model.1", hidden)[0]}


def mmoe(w: Weights, dense: np.ndarray, vectors: Vectors, pooling: Mapping[str, str]) -> dict[str, Any]:
    features = np.concatenate((dense, *pooled(vectors, pooling, ["user", "tags"])))
    experts = np.stack([relu(linear(w, f"experts.{i}", features)) for i in range(3)])
    found = {}
    for i, name in enumerate(("click", "purchase")):
        gate = softmax(linear(w, f"gates.{i}", features))
        found[name] = linear(w, f"heads.{i}", gate @ experts)[0]
    return found


def din(w: Weights, dense: np.ndarray, vectors: Vectors, pooling: Mapping[str, str]) -> dict[str, Any]:
    history, item = vectors["history"], vectors["item"]
    target = item[0] if len(item) else np.zeros(item.shape[1])
    interest = np.zeros(len(target))
    for past in history:
        pair = np.concatenate((target, past, target - past, target * past))
        interest = interest + linear(w, "attention.2", relu(linear(w, "attention.0", pair)))[0] * past
    (user,) = pooled(vectors, pooling, ["user"])
    features = np.concatenate((dense, interest, target, user))
    return {"score": linear(w, "head.2", relu(linear(w, "head.0", features)))[0]}


def two_towers(w: Weights, dense: np.ndarray, vectors: Vectors, pooling: Mapping[str, str]) -> dict[str, Any]:
    sides = {"user": ["user", "tags"], "item": ["item"]}
    found: dict[str, Any] = {}
    for side, names in sides.items():
        raw = linear(w, f"towers.{side}", np.concatenate(pooled(vectors, pooling, names)))
        found[side] = raw / max(np.linalg.norm(raw), 1e-12)
    found["click"] = found["user"] @ found["item"] * 5 + w["bias"][0]
    return found


def shared_towers(
    w: Weights, dense: np.ndarray, vectors: Vectors, pooling: Mapping[str, str]
) -> dict[str, Any]:
    history = vectors["history"]
    mean = history.mean(axis=0) if len(history) else np.zeros(8)
    tags = vectors["tags"].mean(axis=0) if len(vectors["tags"]) else np.zeros(4)
    inputs = np.concatenate((dense[:1], vectors["user"].sum(axis=0), tags, mean))
    user = linear(w, "user.2", relu(linear(w, "user.0", inputs)))
    item = linear(w, "item", np.concatenate((dense[1:], vectors["item"].sum(axis=0))))
    return {"click": user @ item / (1 + np.linalg.norm(user)) + w["bias"][0], "user": user}


BY_HAND: dict[str, ByHand] = {
    "dcn_v2": dcn_v2,
    "deepfm": deepfm,
    "dlrm_transformer": dlrm_transformer,
    "mmoe": mmoe,
    "din": din,
    "two_towers": two_towers,
    "shared_towers": shared_towers,
}
