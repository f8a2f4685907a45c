#include "classify.h"

#include <algorithm>
#include <cstdlib>

#include "labels.h"
#include "model.h"
#include "settings.h"
#include "tensorflow/lite/micro/micro_interpreter.h"
#include "tensorflow/lite/micro/micro_log.h"
#include "tensorflow/lite/micro/system_setup.h"
#include "tensorflow/lite/schema/schema_generated.h"
#include "test_picture.h"

namespace refilled {
namespace {

constexpr int kPixelBytes = kImageSize * kImageSize * kChannels;
static_assert(sizeof(kTestPicture) == kPixelBytes, "a test picture of another size");
static_assert(sizeof(kTestScores) == kClasses, "test scores of other classes");
static_assert(sizeof(kLabels) / sizeof(kLabels[0]) == kClasses, "labels of other classes");

alignas(16) uint8_t arena[kArenaBytes + kScratchBytes];
tflite::MicroInterpreter* interpreter = nullptr;

}  // namespace

bool Start() {
  if (interpreter != nullptr) return true;
  tflite::InitializeTarget();
  const tflite::Model* model = tflite::GetModel(kModel);
  if (model->version() != TFLITE_SCHEMA_VERSION) {
    MicroPrintf("The model's schema is %d, tflite-micro's %d.", static_cast<int>(model->version()),
                TFLITE_SCHEMA_VERSION);
    return false;
  }
  static Operators operators;
  if (AddOperators(operators) != kTfLiteOk) {
    MicroPrintf("tflite-micro lacks an operator.");
    return false;
  }
  static tflite::MicroInterpreter made(model, operators, arena, sizeof(arena));
  if (made.AllocateTensors() != kTfLiteOk) {
    MicroPrintf("%d bytes of arena are too few.", static_cast<int>(sizeof(arena)));
    return false;
  }
  MicroPrintf("%d of %d bytes of arena are used.", static_cast<int>(made.arena_used_bytes()),
              static_cast<int>(sizeof(arena)));
  interpreter = &made;
  return true;
}

const int8_t* Classify(const uint8_t* pixels) {
  int8_t* input = interpreter->input(0)->data.int8;
  for (int i = 0; i < kPixelBytes; ++i) input[i] = static_cast<int8_t>(pixels[i] - 128);
  if (interpreter->Invoke() != kTfLiteOk) {
    MicroPrintf("tflite-micro has failed.");
    return nullptr;
  }
  return interpreter->output(0)->data.int8;
}

int Best(const int8_t* scores) {
  return static_cast<int>(std::max_element(scores, scores + kClasses) - scores);
}

bool TestPicture() {
  const int8_t* scores = Classify(kTestPicture);
  if (scores == nullptr) return false;
  int difference = 0;
  for (int i = 0; i < kClasses; ++i) {
    difference = std::max(difference, std::abs(scores[i] - kTestScores[i]));
  }
  MicroPrintf("The test picture shows %s and is taken for %s.", kLabels[kTestClass],
              kLabels[Best(scores)]);
  if (difference > kTestTolerance) {
    MicroPrintf("A score is off by %d: this is not what was expected.", difference);
    return false;
  }
  MicroPrintf("This is what was expected.");
  return true;
}

}  // namespace refilled
