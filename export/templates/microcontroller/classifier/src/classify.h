// An image classifier, run by tflite-micro.
#pragma once

#include <cstdint>

namespace refilled {

// Makes the interpreter ready, the first time; false, having said why, if that fails.
bool Start();

// Classifies kImageSize x kImageSize pixels, row by row, kChannels bytes each.
//
// Returns kClasses scores in the order of kLabels: 256 times a probability, less 128. They last
// until the next call; nullptr if tflite-micro fails. Start comes first.
const int8_t* Classify(const uint8_t* pixels);

// Returns which of kClasses scores is the highest.
int Best(const int8_t* scores);

// Classifies the test picture, and says whether its scores are as expected.
bool TestPicture();

}  // namespace refilled
