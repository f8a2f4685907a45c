#include "model.h"

namespace refilled {

alignas(16) const unsigned char kModel[] = {
{{ model | rows }}
};
const unsigned int kModelLength = {{ bytes }};

}  // namespace refilled
