// The names of the classes in UTF-8, in the order of the scores.
#pragma once

namespace refilled {

inline constexpr const char* kLabels[] = {
{% for name in class_names %}
    {{ name | c_string }},
{% endfor %}
};

}  // namespace refilled
