// An image that the network was not trained on, and what it has to make of it.
#pragma once

#include <cstdint>

namespace refilled {

inline constexpr uint8_t kTestPicture[] = {
{{ test_picture | rows }}
};
inline constexpr int kTestClass = {{ test_class }};  // what it shows
inline constexpr int8_t kTestScores[] = {
{{ test_scores | rows }}
};
// Other kernels may round otherwise: those of TFLite on a PC were off by up to 4.
inline constexpr int kTestTolerance = 8;

}  // namespace refilled
