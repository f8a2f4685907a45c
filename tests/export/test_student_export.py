"""Every network that a student may be, as SavedModel and as TFLite files.

Each is trained for a few seconds, by Keras's own loop: enough to tell what an export has broken.
Expected are the classes that Keras gives, and its probabilities.
"""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter

from export import tflite_model, versions
from refilled_tf.data import batches
from refilled_tf.models import networks
from refilled_tf.own_images import students

pytestmark = pytest.mark.slow

# What share of images must get the class that Keras gives; .93 was the least seen of integers.
AGREEMENT = {"none": 1.0, "float16": 0.97, "dynamic": 0.95, "int8": 0.85}
IMAGES = 100


@pytest.fixture(scope="module", params=students.NETWORKS)
def classifier(request, model):
    """A `Trained` of another network, and what it makes of test images, [N, 5]."""
    backbone = students.parse(request.param, 0.25)
    tf.keras.utils.set_random_seed(0)
    network = networks.classifier(backbone, 32, 5)
    train, test = model.data.train, model.data.test
    loop = tf.keras.Model(network.input, network.output["logits"])
    loss = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    loop.compile(tf.keras.optimizers.Adam(2e-3), loss)
    crops = np.concatenate(list(batches.scoring_batches(train, 32)))
    loop.fit(crops, train.labels, batch_size=25, epochs=25, verbose=0)
    crops = list(batches.scoring_batches(test, 32))
    probabilities = tf.nn.softmax(networks.outputs_of(network, crops)["logits"]).numpy()
    right = np.mean(probabilities.argmax(axis=1) == test.labels)
    assert right > 0.7  # else agreement would say little
    stage = dataclasses.replace(model.stage, backbone=backbone)
    changed = model._replace(
        stage=stage, network=network, result=model.result | {"accuracy": float(right)}
    )
    return changed, probabilities[:IMAGES]


def test_saved_model_answers_as_keras(classifier, tmp_path):
    """`publish` compares, and adds no version that answers otherwise."""
    versions.publish(classifier[0], tmp_path)
    assert len(versions.existing(tmp_path)) == 1


def _probabilities(content, images):
    interpreter = Interpreter(model_content=content)
    interpreter.allocate_tensors()
    (taken,), (given,) = interpreter.get_input_details(), interpreter.get_output_details()
    answers = []
    for image in images:
        interpreter.set_tensor(taken["index"], image[None].astype(taken["dtype"]))
        interpreter.invoke()
        answer = interpreter.get_tensor(given["index"])[0]
        # Bytes stand for 256ths.
        answers.append(answer / 256 if given["dtype"] == np.uint8 else answer)
    return np.array(answers, np.float32)


def test_tflite_files_answer_as_keras(classifier):
    changed, expected = classifier
    files = tflite_model.convert(changed, list(tflite_model.QUANTIZATIONS))
    sizes = {name: len(content) for name, content in files.items()}
    assert sizes["int8"] < sizes["float16"] < sizes["none"]
    for name, content in files.items():
        answers = _probabilities(content, changed.data.test.images[:IMAGES])
        same = np.mean(answers.argmax(axis=1) == expected.argmax(axis=1))
        assert same >= AGREEMENT[name], name
        if name == "none":
            np.testing.assert_allclose(answers, expected, atol=1e-3)
