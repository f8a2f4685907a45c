"""The SavedModel itself: what a server can ask of a network.

signature        input                                   outputs
serving_default  examples [B] string, tf.Example each    classes, scores, probabilities
serving_bytes    image_bytes [B] string, JPEG or PNG     classes, scores, probabilities
serving_tensor   images [B, S, S, 3] float32 in [0,255]  classes, scores, probabilities
embedding        image_bytes [B] string, JPEG or PNG     embedding
classify         inputs [B] string, tf.Example each      classes, scores

An Example holds the encoded image as its feature "image/encoded". Encoded images may have any
size, shape and number of channels; they are seen as the scoring after the training saw its images.

classes        [B, k] string, the k = min(5, C) most probable classes, best first
scores         [B, k] float32, their probabilities
probabilities  [B, C] float32 of all classes, in the order of assets/classes.txt
embedding      [B, d] float32 of length 1
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import tensorflow as tf

from refilled_tf.data.batches import center_crop
from refilled_tf.data.sources import decode_image
from refilled_tf.data.task import Data

TOP = 5
VOCABULARY = "classes.txt"

Functions = dict[str, tf.types.experimental.ConcreteFunction]


def save(
    network: tf.keras.Model, data: Data, class_names: Sequence[str], folder: Path
) -> Functions:
    """Writes a SavedModel with the signatures above.

    Args:
        network: images [B, S, S, 3] in [0, 255] to {"embedding" [B, d], "logits" [B, C]}.
        data: the sizes to which images are resized and cropped.
        class_names: of the C classes.
        folder: where to; may exist.

    Returns:
        The functions behind the signatures.
    """
    # TensorFlow names the table after the vocabulary's path, and a process that has loaded two
    # models keeps one table of a name for both: the path must be new for every export.
    with tempfile.TemporaryDirectory() as fresh:
        vocabulary = Path(fresh) / VOCABULARY
        vocabulary.write_text("".join(f"{name}\n" for name in class_names), encoding="utf-8")
        module = tf.Module()
        # Its variables alone: a tracked Keras model would also save its training's functions.
        module.weights = network.weights
        module.class_names = _lines(vocabulary)
        functions = _functions(network, data, module.class_names)
        tf.saved_model.save(module, str(folder), signatures=functions)
    # TensorFlow 2 calls every signature "predict", which a server's Classify call refuses.
    updater = tf.compat.v1.saved_model.signature_def_utils.MethodNameUpdater(str(folder))
    updater.replace_method_name("classify", tf.saved_model.CLASSIFY_METHOD_NAME)
    updater.save()
    # It identifies the file as it was before the renaming. Loaders do without it.
    (folder / "fingerprint.pb").unlink()
    return functions


def _lines(vocabulary: Path) -> tf.lookup.StaticHashTable:
    """Returns a table from line numbers, from 0 on, to lines; the file becomes an asset."""
    initializer = tf.lookup.TextFileInitializer(
        str(vocabulary),
        key_dtype=tf.int64,
        key_index=tf.lookup.TextFileIndex.LINE_NUMBER,
        value_dtype=tf.string,
        value_index=tf.lookup.TextFileIndex.WHOLE_LINE,
    )
    return tf.lookup.StaticHashTable(initializer, default_value="")


def _functions(network: tf.keras.Model, data: Data, names: tf.lookup.StaticHashTable) -> Functions:
    """Traces the signatures."""
    loaded, size = data.load_size, data.image_size
    strings = tf.TensorSpec([None], tf.string)
    images_spec = tf.TensorSpec([None, size, size, 3], tf.float32)

    # A function of its own, so that the network is in the graph once for all signatures.
    @tf.function(input_signature=[images_spec])
    def outputs(images):
        return network(images, training=False)

    def preprocess(encoded):
        """Does what `TfdsSource.images` and `batches.scoring_batches` do."""
        squares = tf.map_fn(
            lambda image: decode_image(image, None, loaded),
            encoded,
            fn_output_signature=tf.TensorSpec([loaded, loaded, 3], tf.uint8),
        )
        return tf.cast(center_crop(squares, size), tf.float32)

    def image_bytes_of(examples):
        feature = tf.io.FixedLenFeature([], tf.string)
        return tf.io.parse_example(examples, {"image/encoded": feature})["image/encoded"]

    def serving_tensor(images):
        logits = outputs(images)["logits"]
        probabilities = tf.nn.softmax(logits)
        _, best = tf.math.top_k(logits, min(TOP, logits.shape[-1]))
        return {
            "classes": names.lookup(tf.cast(best, tf.int64)),
            "scores": tf.gather(probabilities, best, batch_dims=1),
            "probabilities": probabilities,
        }

    def serving_bytes(image_bytes):
        return serving_tensor(preprocess(image_bytes))

    def serving_default(examples):
        return serving_bytes(image_bytes_of(examples))

    def embedding(image_bytes):
        features = outputs(preprocess(image_bytes))["embedding"]
        return {"embedding": tf.math.l2_normalize(features, axis=-1)}

    def classify(inputs):
        answers = serving_default(inputs)
        # Classify's answer has room for these two only.
        return {name: answers[name] for name in ("classes", "scores")}

    signatures = {
        serving_default: strings,
        serving_bytes: strings,
        serving_tensor: images_spec,
        embedding: strings,
        classify: strings,
    }
    return {
        function.__name__: tf.function(function, input_signature=[spec]).get_concrete_function()
        for function, spec in signatures.items()
    }
