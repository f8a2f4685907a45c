"""The SavedModel itself: what a server can ask of a network.

signature        input                                   outputs
serving_default  examples [B] string, tf.Example each    classes, scores, probabilities
serving_bytes    image_bytes [B] string, JPEG or PNG     classes, scores, probabilities
serving_tensor   images [B, S, S, 3] float32 in [0,255]  classes, scores, probabilities
embedding        image_bytes [B] string, JPEG or PNG     embedding
classify         inputs [B] string, tf.Example each      classes, scores
serving_support  support_bytes [N] string, JPEG or PNG   classes, scores
                 support_labels [N] string
                 query_bytes [Q] string, JPEG or PNG

An Example holds the encoded image as its feature "image/encoded". Encoded images may have any
shape and number of channels, and up to MAX_PIXELS pixels; they are seen as the scoring after the
training saw its images, but for two things that TensorFlow does not read: EXIF, so that a turned
photo stays turned, and a PNG's transparent colours, where it has no alpha channel. The client and
the embedded server mend both before the graph (refilled_tf.data.pixels.for_graph). A batch may be
empty, and is then answered by nothing.

classes        [B, k] string, the k = min(5, C) most probable classes, best first
scores         [B, k] float32, their probabilities
probabilities  [B, C] float32 of all classes, in the order of assets/classes.txt
embedding      [B, d] float32 of length 1

"serving_support" answers with none of these C classes: it learns others from the request itself.
The support are N > 0 images and their classes' names, which are the caller's choice. The centre of
a class is the mean of its images' "embedding", brought to length 1; a query is of the class with
the nearest centre. That is the NCM which trainings report. Of Q queries and C' different names,

classes        [Q, k] string, the k = min(5, C') nearest classes, nearest first; of two that are
               equally near, the one that comes first in support_labels
scores         [Q, k] float32, softmax of -||e - c||² over the C' centres c, e the query's
               embedding (Snell, Swersky, Zemel, "Prototypical Networks for Few-shot Learning",
               NeurIPS 2017, Eq. 2). No squared distance is above 4, so they lie close together.

Its inputs are one task and no batch. A server that joins requests into batches would refuse it
where N and Q differ, and make one task of several callers' where they do not.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import tensorflow as tf

from refilled_tf.data.resizing import center_crop
from refilled_tf.data.sources import PNG, decode_image
from refilled_tf.data.task import Data
from refilled_tf.losses.local import class_centers

TOP = 5
VOCABULARY = "classes.txt"
MAX_PIXELS = 2**25  # of one image: 100 MB once it is decoded
# With length and type of the first chunk. Width and height follow.
PNG_HEAD = PNG + b"\0\0\0\rIHDR"

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


def _checked(encoded: tf.Tensor) -> tf.Tensor:
    """Returns an encoded image, once its header is seen to promise no more than MAX_PIXELS.

    In the graph, so that every server is safe from a small file that decodes to gigabytes.

    Args:
        encoded: scalar string.

    Returns:
        The same. Running it raises InvalidArgumentError where the image is neither JPEG nor PNG,
        or too large.
    """
    is_jpeg = tf.io.is_jpeg(encoded)
    # With zeros behind it, so that width and height can be read of a file that ends before them.
    header = tf.strings.substr(encoded, 0, len(PNG_HEAD) + 8) + b"\0" * (len(PNG_HEAD) + 8)
    is_png = tf.strings.substr(header, 0, len(PNG_HEAD)) == PNG_HEAD
    known = tf.Assert(is_jpeg | is_png, ["an image is neither JPEG nor PNG"])
    with tf.control_dependencies([known]):
        sides = tf.cond(
            is_jpeg,
            lambda: tf.io.extract_jpeg_shape(encoded)[:2],
            lambda: tf.io.decode_raw(
                tf.strings.substr(header, len(PNG_HEAD), 8), tf.int32, little_endian=False
            ),
        )
    pixels = tf.reduce_prod(tf.cast(sides, tf.int64))
    message = tf.strings.format(f"an image has {{}} pixels, the limit is {MAX_PIXELS}", pixels)
    small = tf.Assert(pixels <= MAX_PIXELS, [message])
    with tf.control_dependencies([small]):
        return tf.identity(encoded)


def _support_checks(images: tf.Tensor, labels: tf.Tensor) -> list[tf.Operation]:
    """Returns what fails unless there are images [N] string and as many labels."""
    counts = (tf.size(images), tf.size(labels))
    message = tf.strings.format("support_bytes holds {} images, support_labels {} names", counts)
    return [
        tf.Assert(counts[0] == counts[1], [message]),
        tf.Assert(counts[0] > 0, ["support_bytes holds no image"]),
    ]


def _functions(network: tf.keras.Model, data: Data, names: tf.lookup.StaticHashTable) -> Functions:
    """Traces the signatures."""
    loaded, size = data.load_size, data.image_size
    strings = tf.TensorSpec([None], tf.string)
    images_spec = tf.TensorSpec([None, size, size, 3], tf.float32)

    # A function of its own, so that the network is in the graph once for all signatures.
    @tf.function(input_signature=[images_spec], autograph=False)
    def outputs(images):
        # oneDNN's convolutions, which TensorFlow turns on by the kind of CPU, fail on no image at
        # all. Such a batch gets a black one; any other passes as it is, without a copy.
        count = tf.shape(images)[0]
        missing = tf.maximum(1 - count, 0)
        images = tf.pad(images, [[0, missing], [0, 0], [0, 0], [0, 0]])
        return {name: out[:count] for name, out in network(images, training=False).items()}

    def preprocess(encoded):
        """Does what `TfdsSource.images` and `batches.scoring_batches` do."""
        squares = tf.map_fn(
            lambda image: decode_image(_checked(image), None, loaded),
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

    def serving_support(support_bytes, support_labels, query_bytes):
        with tf.control_dependencies(_support_checks(support_bytes, support_labels)):
            # At once, which is one run of the network.
            features = embedding(tf.concat([support_bytes, query_bytes], 0))["embedding"]
        support, query = tf.split(features, [tf.size(support_bytes), tf.size(query_bytes)])
        classes, rows = tf.unique(support_labels)  # in the order in which they first occur
        centers, _ = class_centers(support, rows, tf.size(classes))
        # -||e - c||² without ||e||², which is the same for all classes and so not in the softmax.
        logits = 2.0 * tf.matmul(query, centers, transpose_b=True) - tf.reduce_sum(centers**2, 1)
        _, best = tf.math.top_k(logits, tf.minimum(TOP, tf.size(classes)))
        return {
            "classes": tf.gather(classes, best),
            "scores": tf.gather(tf.nn.softmax(logits), best, batch_dims=1),
        }

    signatures = {
        serving_default: [strings],
        serving_bytes: [strings],
        serving_tensor: [images_spec],
        embedding: [strings],
        classify: [strings],
        serving_support: [strings, strings, strings],
    }
    # Nothing here is a Python branch or loop over tensors, which is all that autograph would turn
    # into a graph; to look for them takes longer than to trace.
    return {
        function.__name__: tf.function(
            function, input_signature=specs, autograph=False
        ).get_concrete_function()
        for function, specs in signatures.items()
    }
