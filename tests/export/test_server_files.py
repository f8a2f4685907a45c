"""Files beside the versions: batching parameters as text, and models.config under two hands."""

import re

import pytest
from tensorflow_serving.config.model_server_config_pb2 import ModelServerConfig

from export import server_files
from export.server_files import Batching
from refilled_tf.common.errors import InputError


def test_what_an_export_writes_is_read(tmp_path):
    server_files.write(tmp_path, server_files.label(ModelServerConfig(), [], 1))
    read = server_files.read_batching(tmp_path / "server" / "batching.config")
    assert read == Batching(
        max_batch_size=32, batch_timeout_micros=2000, max_enqueued_batches=10, num_batch_threads=2
    )
    assert read.capacity == 320
    alone = read.alone()
    assert (alone.max_batch_size, alone.capacity, alone.num_batch_threads) == (1, 320, 2)


def test_forms_of_text_and_what_is_unknown(tmp_path):
    path = tmp_path / "batching.config"
    assert server_files.read_batching(path) == Batching()
    path.write_text(
        "max_batch_size: { value: 8 }  # a comment\nallowed_batch_sizes: [2, 4]\n"
        'allowed_batch_sizes: 8 thread_pool_name { value: "mine" } pad_variable_length_inputs: true'
    )
    read = server_files.read_batching(path)
    assert read == Batching(max_batch_size=8, allowed_batch_sizes=(2, 4, 8))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max_batch_size 8", "holds no batching parameters: 1:16 : "),
        ('max_batch_size { value: "a" }', "holds no batching parameters: 1:25 : "),
        ("max_batch_size { value: 0 }", "max_batch_size must be at least 1"),
        ("num_batch_threads { value: -1 }", "num_batch_threads must be at least 1"),
        ("batch_timeout_micros { value: -1 }", "batch_timeout_micros must be at least 0"),
        ("allowed_batch_sizes: [4, 2]", "allowed_batch_sizes must be positive and ascend"),
        (
            "allowed_batch_sizes: [2, 4]",
            "the last of allowed_batch_sizes must be max_batch_size=32",
        ),
    ],
)
def test_impossible_parameters(text, message, tmp_path):
    path = tmp_path / "batching.config"
    path.write_text(text)
    with pytest.raises(InputError, match=re.escape(message)):
        server_files.read_batching(path)


def test_a_label_moved_during_an_export_stays_where_it_is(tmp_path):
    server_files.add(tmp_path, [1], 1)
    server_files.add(tmp_path, [1, 2], 2)
    # The export of 3 has begun; a person releases the canary.
    released = server_files.read_models(tmp_path)
    (ours,) = released.model_config_list.config
    ours.version_labels["stable"] = 2
    server_files.write(tmp_path, released)
    server_files.add(tmp_path, [1, 2, 3], 3)
    (ours,) = server_files.read_models(tmp_path).model_config_list.config
    assert dict(ours.version_labels) == {"stable": 2, "canary": 3}
    assert list(ours.model_version_policy.specific.versions) == [2, 3]
