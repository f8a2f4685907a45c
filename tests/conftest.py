"""Two logical CPU devices, so that tests can build MirroredStrategy(["CPU:0", "CPU:1"])."""

import tensorflow as tf

tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)
