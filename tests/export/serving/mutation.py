"""Broken requests, made of good ones by a seeded random generator."""

import base64
import copy
import gzip
import json
import random

import images
import tensorflow as tf

NOISE = [
    b"",
    b"\0",
    b"\xff" * 4,
    b"{}",
    b"[" * 50,
    b'"',
    b"\\ud800",
    b"1e400",
    b"-1",
    b"%00",
    b"\r\n",
]
VALUES = [
    None, True, 0, -1, 2**31, 2**63, 10**400, 1.5, float("nan"), float("inf"), "", "a", "\ud800",
    [], [[]], [[1], [1, 2]], {}, {"b64": ""}, {"b64": "?"}, {"b64": "AA"}, {"b64": 1}, {"": {}},
]  # fmt: skip
IMAGES = [images.NOISE_PNG, images.JPEG, images.black_png(64, 48), images.giant_jpeg()]


def mutated(dice: random.Random, data: bytes) -> bytes:
    """Returns bytes with up to four places changed: flipped, cut, doubled, or overwritten."""
    data = bytearray(data)
    for _ in range(dice.randint(1, 4)):
        start = dice.randint(0, len(data))
        end = min(len(data), start + dice.choice([1, 1, 2, 8, 64, 1024]))
        change = dice.randrange(5)
        if change == 0 and start < len(data):
            data[start] ^= 1 << dice.randrange(8)
        elif change == 1:
            del data[start:end]
        elif change == 2:
            data[start:start] = data[start:end]
        elif change == 3:
            data[start:end] = dice.choice(NOISE)
        else:
            del data[start:]
    return bytes(data)


def image(dice: random.Random) -> bytes:
    """Returns a good image, or one that is not."""
    content = dice.choice(IMAGES)
    return mutated(dice, content) if dice.random() < 0.6 else content


def example(dice: random.Random) -> bytes:
    """Returns a serialized tf.Example, or what was one."""
    feature = tf.train.Feature(bytes_list=tf.train.BytesList(value=[image(dice)]))
    message = tf.train.Example(features=tf.train.Features(feature={"image/encoded": feature}))
    content = message.SerializeToString()
    return mutated(dice, content) if dice.random() < 0.5 else content


def inputs(dice: random.Random) -> tuple[str, dict[str, list[bytes]]]:
    """Returns a signature and its inputs, with images or Examples of any kind."""
    signature = dice.choice(
        ["serving_bytes", "embedding", "serving_default", "classify", "support"]
    )
    count = dice.choice([0, 1, 1, 2, 3])
    if signature == "support":
        columns = {
            "support_bytes": [image(dice) for _ in range(count)],
            "support_labels": [mutated(dice, b"label") for _ in range(dice.choice([count, 1]))],
            "query_bytes": [image(dice)],
        }
        return "serving_support", columns
    name = {"serving_default": "examples", "classify": "inputs"}.get(signature, "image_bytes")
    make = image if name == "image_bytes" else example
    return signature, {name: [make(dice) for _ in range(count)]}


def body(dice: random.Random) -> bytes:
    """Returns a body for :predict or :classify, with its structure or its bytes changed."""
    signature, columns = inputs(dice)
    encoded = {
        name: [{"b64": base64.b64encode(value).decode()} for value in values]
        for name, values in columns.items()
    }
    pixels = [[[0.5] * 3] * 32] * 32
    document = dice.choice(
        [
            {"signature_name": signature, "inputs": encoded},
            {"signature_name": signature, "instances": next(iter(encoded.values()))},
            {"signature_name": "serving_tensor", "instances": [pixels]},
            {
                "signature_name": "classify",
                "examples": [{"image/encoded": value} for value in next(iter(encoded.values()))],
                "context": {"size": [1, 2]},
            },
        ]
    )
    document = copy.deepcopy(document)
    for _ in range(dice.choice([0, 1, 1, 2])):
        _change_a_node(dice, document)
    content = json.dumps(document).replace("Infinity", dice.choice(["Infinity", "1e400"])).encode()
    return mutated(dice, content) if dice.random() < 0.3 else content


def _change_a_node(dice: random.Random, document: dict | list) -> None:
    while True:
        keys = list(document) if isinstance(document, dict) else list(range(len(document)))
        if not keys:
            return
        key = dice.choice(keys)
        if isinstance(document[key], dict | list) and dice.random() < 0.7:
            document = document[key]
            continue
        change = dice.randrange(4)
        if change == 0:
            del document[key]
        elif change == 1 and isinstance(document, dict):
            document[dice.choice(["", "x", "inputs", "instances"])] = document.pop(key)
        else:
            document[key] = copy.deepcopy(dice.choice(VALUES))
        return


def http_request(dice: random.Random) -> bytes:
    """Returns a request as it goes over the wire, which may be none."""
    content, headers = body(dice), {}
    if dice.random() < 0.2:
        content = gzip.compress(content, mtime=0)
        headers["Content-Encoding"] = dice.choice(["gzip", "gzip", "br", "x" * 99])
        content = mutated(dice, content) if dice.random() < 0.5 else content
    if dice.random() < 0.1:
        content = f"{len(content):x}\r\n".encode() + content + b"\r\n0\r\n\r\n"
        headers["Transfer-Encoding"] = "chunked"
    else:
        headers["Content-Length"] = str(dice.choice([len(content)] * 9 + [-1, 10**30, ""]))
    method = dice.choice(["POST"] * 8 + ["GET", "HEAD", "OPTIONS", "PUT", "?"])
    place = dice.choice(
        ["", "/versions/1", "/versions/" + "9" * 30, "/labels/stable", "/labels/%ff"]
    )
    verb = dice.choice([":predict"] * 4 + [":classify", ":regress", "/metadata", "", ":x"])
    head = f"{method} /v1/models/refilled{place}{verb} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
    head += "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    request = head.encode() + b"\r\n" + content
    return mutated(dice, request) if dice.random() < 0.1 else request
