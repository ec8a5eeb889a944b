"""Encoders: one modality's columns to tokens, registered by name.

Every encoder reads (B, F) float32 with NaN where a value is missing and answers (B, P, D) tokens that are always
finite. Whatever it needs to know of the data (means, bin edges) it learns once in `fit` from training rows and keeps in
buffers, so it is part of the checkpoint and of the graph. Shape suffixes: B batch, F columns, P patches, D hidden.
Importing this package registers the encoders below; a recipe names a user's own as package.module:Class.

feature, patch, mlp, maxout read columns of any kind; gru reads one (steps, features) array, cnn2d one (channels, height,
width) array, cnn3d one (x, y, z) array.
"""

from training.model.encoders.base import ENCODERS, Encoder, register_encoder
from training.model.encoders.feature import FeatureEncoder
from training.model.encoders.image import ImageEncoder
from training.model.encoders.maxout import MaxoutEncoder
from training.model.encoders.mlp import MLPEncoder
from training.model.encoders.patch import PatchEncoder, PatchProjection
from training.model.encoders.recurrent import GRUEncoder
from training.model.encoders.volume import VolumeEncoder

__all__ = [
    "ENCODERS",
    "Encoder",
    "FeatureEncoder",
    "GRUEncoder",
    "ImageEncoder",
    "MLPEncoder",
    "MaxoutEncoder",
    "PatchEncoder",
    "PatchProjection",
    "VolumeEncoder",
    "register_encoder",
]
