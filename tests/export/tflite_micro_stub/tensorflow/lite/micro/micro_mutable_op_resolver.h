// Stands in for tflite-micro: as much of it as the C++ that is written for microcontrollers uses.
#pragma once

enum TfLiteStatus { kTfLiteOk, kTfLiteError };

namespace tflite {

template <unsigned int count>
class MicroMutableOpResolver {
 public:
  TfLiteStatus AddAdd() { return Add(); }
  TfLiteStatus AddAveragePool2D() { return Add(); }
  TfLiteStatus AddConv2D() { return Add(); }
  TfLiteStatus AddDepthwiseConv2D() { return Add(); }
  TfLiteStatus AddFullyConnected() { return Add(); }
  TfLiteStatus AddPad() { return Add(); }
  TfLiteStatus AddReshape() { return Add(); }
  TfLiteStatus AddSoftmax() { return Add(); }

  bool is_full() const { return added_ == count; }

 private:
  TfLiteStatus Add() { return added_++ < count ? kTfLiteOk : kTfLiteError; }

  unsigned int added_ = 0;
};

}  // namespace tflite
