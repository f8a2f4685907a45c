#pragma once

#define TFLITE_SCHEMA_VERSION 3

namespace tflite {

class Model {
 public:
  unsigned int version() const { return TFLITE_SCHEMA_VERSION; }
};

inline const Model* GetModel(const void* content) { return static_cast<const Model*>(content); }

}  // namespace tflite
