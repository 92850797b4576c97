// How the parameters of a small fully connected network lie in memory: the one layout of Python, CPU and CUDA.
//
// Flat (what users and optimisers hold): layer after layer, weight [outputs][inputs] row-major, then bias [outputs]
// where the network has biases. The layer with the skip connection has weights for [activations | network inputs].
// Padded (what kernels accumulate gradients in): the same with both sizes rounded up to
// multiples of 16.
#pragma once
#include "common.h"

namespace polyfield {

constexpr i64 kMlpPadding = 16;
constexpr i64 kMlpMaxHidden = 8;

struct MlpShape {
  i64 inputs, outputs;
  i64 width;              // 16, 32, 64, 128 or 256
  i64 hidden;             // hidden layers, 1 to kMlpMaxHidden
  i64 hidden_activation;  // HiddenActivation
  i64 output_activation;  // OutputActivation
  i64 bias;               // 0 or 1
  i64 skip = 0;           // the hidden layer, 1 to hidden - 1, that is given the inputs once more; 0: none

  PF_HD static i64 padded(i64 count) { return (count + kMlpPadding - 1) / kMlpPadding * kMlpPadding; }
  PF_HD i64 padded_inputs() const { return padded(inputs); }
  PF_HD i64 padded_outputs() const { return padded(outputs); }
  PF_HD i64 layers() const { return hidden + 1; }
  PF_HD i64 layer_inputs(i64 layer) const { return layer == 0 ? inputs : layer == skip ? width + inputs : width; }
  PF_HD i64 layer_outputs(i64 layer) const { return layer == hidden ? outputs : width; }
  PF_HD i64 layer_parameters(i64 layer) const { return layer_outputs(layer) * (layer_inputs(layer) + bias); }
  PF_HD i64 layer_padded(i64 layer) const {
    return padded(layer_outputs(layer)) * (padded(layer_inputs(layer)) + bias);
  }
  // Where a layer begins in the flat and in the padded layout; layer == layers() gives the total.
  PF_HD i64 flat_offset(i64 layer) const {
    i64 sum = 0;
    for (i64 l = 0; l < layer; ++l) sum += layer_parameters(l);
    return sum;
  }
  PF_HD i64 padded_offset(i64 layer) const {
    i64 sum = 0;
    for (i64 l = 0; l < layer; ++l) sum += layer_padded(l);
    return sum;
  }
  PF_HD i64 parameter_count() const { return flat_offset(layers()); }
};

}  // namespace polyfield
