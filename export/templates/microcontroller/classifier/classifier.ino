// Classifies the test picture, and says on the serial port whether it got what was expected.

#include <Chirale_TensorFlowLite.h>

#include "src/classify.h"

void setup() { refilled::Start(); }

void loop() {
  if (refilled::Start()) refilled::TestPicture();
  delay(5000);
}
