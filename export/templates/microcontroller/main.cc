// Classifies the test picture, and says whether it got what was expected.

#include "classify.h"

#ifdef ESP_PLATFORM
extern "C" void app_main() {
  if (refilled::Start()) refilled::TestPicture();
}
#else
int main() { return refilled::Start() && refilled::TestPicture() ? 0 : 1; }
#endif
