"""Batch norm over the global batch, by one fused operation where one replica has all of it."""

from __future__ import annotations

import tensorflow as tf


@tf.keras.utils.register_keras_serializable("refilled_tf")
class BatchNorm(tf.keras.layers.BatchNormalization):
    """Keras's synchronised batch norm, which it computes in sums and products.

    With a single replica TensorFlow's fused operation does the same in one pass each way. Its
    variance is unbiased, N / (N - 1) times that of the batch; the running one stays Keras's.
    """

    def __init__(self, **options):
        super().__init__(**options | {"synchronized": True})

    def call(self, inputs, training=None, mask=None):
        """Normalises images.

        Args:
            inputs: [B, h, w, c].
            training: whether by the statistics of the global batch, which the running ones follow.
            mask: as Keras has it; images have none.

        Returns:
            [B, h, w, c].
        """
        one = tf.distribute.get_strategy().num_replicas_in_sync == 1
        learns = training is True and self.trainable
        # There is no fused operation in double precision.
        if not (one and learns) or mask is not None or inputs.dtype == tf.float64:
            return super().call(inputs, training=training, mask=mask)
        outputs, mean, unbiased, *_ = tf.raw_ops.FusedBatchNormV3(
            x=inputs,
            scale=self.gamma,
            offset=self.beta,
            mean=[],
            variance=[],
            epsilon=self.epsilon,
            is_training=True,
        )
        count = tf.cast(tf.size(inputs) / inputs.shape[-1], unbiased.dtype)
        variance = unbiased * (1 - 1 / count)
        for running, new in ((self.moving_mean, mean), (self.moving_variance, variance)):
            running.assign_sub((running - new) * (1 - self.momentum))
        return outputs
