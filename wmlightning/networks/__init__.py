"""Tensors in, tensors out; no network here knows of time but through a cell."""

from wmlightning.networks.cells import LSTM
from wmlightning.networks.controller import Controller
from wmlightning.networks.conv import ConvDecoder, ConvEncoder
from wmlightning.networks.images import normalize, to_uint8

__all__ = ["LSTM", "Controller", "ConvDecoder", "ConvEncoder", "normalize", "to_uint8"]
