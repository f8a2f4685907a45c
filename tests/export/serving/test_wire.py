"""The look at messages before they are parsed; expected counts are by hand."""

import random

import asking
import grpc
import mutation
import pytest
import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow_serving.apis.classification_pb2 import ClassificationRequest

from export.serving import wire
from export.serving.errors import Code, RequestError
from export.serving.images import EXAMPLE_FIELDS
from export.serving.images import read as read_images

EMPTY = b"\x0a\x00"  # field 1, of no bytes


def _passes(content, kind, limit):
    try:
        wire.require_few_fields(content, kind.DESCRIPTOR, limit)
    except RequestError:
        return False
    return True


def _example():
    """features, two entries of a map, each with key, value, kind of list and what that holds."""
    bytes_list = tf.train.BytesList(value=[b"a", b"b"])
    feature = {
        "x": tf.train.Feature(bytes_list=bytes_list),
        "y": tf.train.Feature(float_list=tf.train.FloatList(value=range(100))),  # packed
    }
    return tf.train.Example(features=tf.train.Features(feature=feature))


@pytest.mark.parametrize(
    ("message", "count"),
    [
        (_example(), 1 + (1 + 2 + 1 + 2) + (1 + 2 + 1 + 1)),
        # An input is an entry with key and value, this has dtype, shape, a dimension with its
        # size, and a string; model_spec has a name and a signature's.
        (asking.predict_request("serving_bytes", {"image_bytes": [b"a"]}), (1 + 2 + 5) + 3),
    ],
    ids=["Example", "Predict"],
)
def test_fields_are_counted_where_messages_are_in_messages(message, count):
    content = message.SerializeToString()
    assert _passes(content, type(message), count)
    assert not _passes(content, type(message), count - 1)


def test_wire_types_are_told_apart():
    """Fields that nobody knows: a number, eight bytes, four, a string that looks like fields."""
    unknown = b"\xf8\x01\x96\x01" + b"\xf9\x01" + bytes(8) + b"\xfd\x01" + bytes(4)
    unknown += b"\xfa\x01\x04" + 2 * EMPTY
    ClassificationRequest.FromString(unknown)
    assert _passes(unknown, ClassificationRequest, 4)
    assert not _passes(unknown, ClassificationRequest, 3)


def test_broken_messages_are_left_to_the_parser():
    whole, dice = _example().SerializeToString(), random.Random(0)
    broken = 0
    for _ in range(2000):
        content = mutation.mutated(dice, whole)
        wire.require_few_fields(content, tf.train.Example.DESCRIPTOR, 10**6)
        try:
            tf.train.Example.FromString(content)
        except DecodeError:
            broken += 1
    assert broken > 100


def test_many_empty_examples_are_refused_before_they_are_parsed(server, channel):
    """What comes behind them is no message, and is not even looked at."""
    examples = EMPTY * 400_000 + b"\xff"
    inner = b"\x0a" + _length(len(examples)) + examples  # example_list
    content = b"\x12" + _length(len(inner)) + inner  # input
    most = 256 * asking.BATCH_SIZE
    with pytest.raises(grpc.RpcError, match=f"the message has more than {most} fields") as caught:
        channel.unary_unary("/tensorflow.serving.PredictionService/Classify")(content, 60)
    assert caught.value.code() == Code.INVALID_ARGUMENT


def test_examples_in_strings_are_looked_at_too():
    features = EMPTY * EXAMPLE_FIELDS
    example = b"\x0a" + _length(len(features)) + features
    with pytest.raises(RequestError, match=f"more than {EXAMPLE_FIELDS} fields"):
        read_images("examples", [example])


def _length(number):
    """Spells a length: seven bits in a byte, the lowest first."""
    spelt = b""
    while number > 127:
        spelt += bytes([number & 127 | 128])
        number >>= 7
    return spelt + bytes([number])
