"""Raw values → ids and dense numbers, the same in training and serving."""

from dlrm_factory.features.dense import log1p, transform_dense
from dlrm_factory.features.encoder import FeatureEncoder
from dlrm_factory.features.feature_error import FeatureError, shown
from dlrm_factory.features.ids import canonical_int, hash_ids, hash_int64, hash_keys
from dlrm_factory.features.vocabulary import Vocabularies
from dlrm_factory.features.vocabulary_building import build_vocabularies

__all__ = [
    "FeatureEncoder",
    "FeatureError",
    "Vocabularies",
    "build_vocabularies",
    "canonical_int",
    "hash_ids",
    "hash_int64",
    "hash_keys",
    "log1p",
    "shown",
    "transform_dense",
]
