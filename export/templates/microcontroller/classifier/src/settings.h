// What the network takes and gives, and what it needs.
#pragma once

#include "tensorflow/lite/micro/micro_mutable_op_resolver.h"

namespace refilled {

inline constexpr int kImageSize = {{ image_size }};
inline constexpr int kChannels = {{ channels }};  // {{ "grey" if channels == 1 else "red, green, blue" }}
inline constexpr int kClasses = {{ classes }};

// An integer q stands for scale * (q - zero point); a pixel 0 to 255 enters as pixel - 128.
inline constexpr float kInputScale = {{ input.scale }}f;
inline constexpr int kInputZeroPoint = {{ input.zero_point }};
inline constexpr float kOutputScale = {{ output.scale }}f;
inline constexpr int kOutputZeroPoint = {{ output.zero_point }};

// tflite-micro's reference kernels take {{ arena_bytes }} bytes on a PC; the rest is margin.
inline constexpr int kArenaBytes = {{ arena_reserved_bytes }};
#ifdef ESP_PLATFORM
// ESP-NN's kernels work in further memory, which was not measured.
inline constexpr int kScratchBytes = 60 * 1024;
#else
inline constexpr int kScratchBytes = 0;
#endif

using Operators = tflite::MicroMutableOpResolver<{{ operators | length }}>;

inline TfLiteStatus AddOperators(Operators& operators) {
{% for name in operators %}
  if (operators.{{ adders[name] }}() != kTfLiteOk) return kTfLiteError;
{% endfor %}
  return kTfLiteOk;
}

}  // namespace refilled
