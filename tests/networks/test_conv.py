"""The convolutions: sizes, starts, and that a faster way gives the same numbers."""

import pytest
import torch
from torch.nn import functional
from torch.testing import assert_close

from wmlightning.networks import ConvDecoder, ConvEncoder


def test_maps_shrink_from_64_to_2_pixels():
    encoder, sides, hidden = ConvEncoder(depth=2), [], torch.rand(1, 3, 64, 64)
    for layer in encoder.layers:
        hidden = layer(hidden)
        sides.append(hidden.shape[-1])
    assert sides == [31, 14, 6, 2]


def test_maps_grow_from_1_to_64_pixels():
    decoder, sides, hidden = ConvDecoder(5, depth=2), [], torch.rand(1, 64, 1, 1)
    for layer in (decoder.first, decoder.second, decoder.third, decoder.last):
        hidden = layer(hidden)
        sides.append(hidden.shape[-1])
    assert sides == [5, 13, 30, 64]


def plain_decoder(decoder, features, activate=functional.relu):
    """The layers as they are stored, one ordinary transposed convolution after another."""
    hidden = decoder.dense(features)[:, :, None, None]
    for layer in (decoder.first, decoder.second, decoder.third):
        hidden = activate(layer(hidden))
    return decoder.last(hidden)


FEW_AND_MANY = pytest.mark.parametrize("rows", [3, 9], ids=["fewer rows than features", "more rows than features"])


@FEW_AND_MANY
def test_the_decoder_is_the_plain_stack_of_transposed_convolutions(rows):
    decoder, features = ConvDecoder(6, channels=2, depth=4).double(), torch.randn(rows, 6, dtype=torch.float64)
    torch.nn.init.normal_(decoder.dense.bias)
    for layer in (decoder.first, decoder.second, decoder.third, decoder.last):
        torch.nn.init.normal_(layer.bias)
    assert_close(decoder(features), plain_decoder(decoder, features))


@FEW_AND_MANY
def test_the_decoders_gradients_are_those_of_the_plain_stack(rows):
    decoder, features = ConvDecoder(6, channels=2, depth=4).double(), torch.randn(rows, 6, dtype=torch.float64)
    weight = torch.randn(rows, 2, 64, 64, dtype=torch.float64)
    names, parameters = zip(*decoder.named_parameters(), strict=True)
    got = torch.autograd.grad((decoder(features) * weight).sum(), parameters)
    expected = torch.autograd.grad((plain_decoder(decoder, features) * weight).sum(), parameters)
    for name, one, other in zip(names, got, expected, strict=True):
        assert_close(one, other, msg=lambda text, name=name: f"{name}: {text}")


def plain_encoder(encoder, image, activate=functional.relu):
    """The layers as they are stored, one ordinary convolution after another."""
    for layer in encoder.layers:
        image = activate(layer(image))
    return image.permute(0, 2, 3, 1).flatten(1)


def test_the_encoder_and_its_gradients_are_those_of_the_plain_stack_of_convolutions():
    encoder, image = ConvEncoder(depth=4).double(), torch.rand(3, 3, 64, 64, dtype=torch.float64)
    weight = torch.randn(3, encoder.size, dtype=torch.float64)
    outputs = encoder(image), plain_encoder(encoder, image)
    assert_close(*outputs)
    parameters = tuple(encoder.parameters())
    assert_close(*(torch.autograd.grad((output * weight).sum(), parameters) for output in outputs))


def test_with_elu_and_one_channel_it_is_the_plain_stack_too_and_so_are_its_gradients():
    encoder, decoder = ConvEncoder(1, 4, "elu").double(), ConvDecoder(6, 1, 4, "elu").double()
    image, features = torch.rand(3, 1, 64, 64, dtype=torch.float64), torch.randn(3, 6, dtype=torch.float64)
    for part, given, plain in ((encoder, image, plain_encoder), (decoder, features, plain_decoder)):
        outputs = part(given), plain(part, given, functional.elu)
        assert_close(*outputs)
        weight, parameters = torch.randn_like(outputs[0]), tuple(part.parameters())
        assert_close(*(torch.autograd.grad((output * weight).sum(), parameters) for output in outputs))


def test_the_encoders_and_decoders_of_both_dreamers_have_the_published_numbers_of_parameters():
    for part, expected in (
        (ConvEncoder(3, 32), 690_144),
        (ConvDecoder(230, 3, 32), 3_795_555),
        (ConvEncoder(1, 48, "elu"), 1_549_776),
        (ConvDecoder(1624, 1, 48, "elu"), 10_497_553),
    ):
        assert sum(p.numel() for p in part.parameters()) == expected


def test_features_of_the_encoder_stand_in_the_order_row_column_channel():
    encoder = ConvEncoder(depth=2)
    image = torch.rand(2, 3, 64, 64)
    hidden = image
    for layer in encoder.layers:
        hidden = functional.relu(layer(hidden))
    assert_close(encoder(image).reshape(2, 2, 2, 16)[1, 0, 1], hidden[1, :, 0, 1])


def test_weights_start_within_glorots_bound_and_biases_at_zero():
    layer = ConvEncoder(depth=8).layers[1]
    bound = (6 / (16 * 8 + 16 * 16)) ** 0.5
    assert layer.bias.abs().max() == 0
    assert 0.95 * bound < layer.weight.abs().max() <= bound


@pytest.mark.parametrize("shape", [(1, 3, 32, 32), (1, 1, 64, 64)])
def test_images_of_another_shape_are_refused_with_the_cure(shape):
    with pytest.raises(ValueError, match="resize to 64 pixels"):
        ConvEncoder(depth=2)(torch.rand(shape))
