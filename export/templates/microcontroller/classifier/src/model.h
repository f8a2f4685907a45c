// The network as TFLite has it: the content of model.tflite.
#pragma once

namespace refilled {

extern const unsigned char kModel[];
extern const unsigned int kModelLength;

}  // namespace refilled
