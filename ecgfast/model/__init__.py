"""Masked autoencoder, classifier and convolutional baseline."""

from ecgfast.model.build import build_classifier, build_model, initialise
from ecgfast.model.classifier import Classifier, encoder_state
from ecgfast.model.cnn import EcgCnn
from ecgfast.model.mae import MaskedAutoencoder
from ecgfast.model.vit import Encoder

__all__ = [
    "Classifier",
    "EcgCnn",
    "Encoder",
    "MaskedAutoencoder",
    "build_classifier",
    "build_model",
    "encoder_state",
    "initialise",
]
