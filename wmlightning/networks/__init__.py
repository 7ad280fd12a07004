"""Networks: tensors in, tensors out; only the recurrent cells have a notion of time."""

from wmlightning.networks.cells import CELLS, GRU, LSTM, KerasGRU, LayerNormGRU
from wmlightning.networks.controller import Controller
from wmlightning.networks.conv import ConvDecoder, ConvEncoder
from wmlightning.networks.mlp import MLP
from wmlightning.networks.pixels import normalize, quantize, to_uint8

__all__ = [
    "CELLS",
    "GRU",
    "LSTM",
    "MLP",
    "Controller",
    "ConvDecoder",
    "ConvEncoder",
    "KerasGRU",
    "LayerNormGRU",
    "normalize",
    "quantize",
    "to_uint8",
]
