// One element of Adam (Kingma and Ba 2015, algorithm 1), as torch.optim.Adam computes it, weight decay as an L2 term.
#pragma once
#include "common.h"

namespace polyfield {

template <class T> struct AdamStep {
  T beta1, beta2, epsilon, weight_decay;
  T step_size;    // lr / (1 - beta1^step)
  T correction2;  // 1 / (1 - beta2^step)
};

#if !defined(__CUDACC__) && !defined(__CUDACC_RTC__)
// `step` counts from 1 and is global: rows that were skipped before do not count their own steps.
template <class T>
inline AdamStep<T> adam_step(double lr, double beta1, double beta2, double epsilon, double weight_decay, i64 step) {
  const double rest1 = 1 - std::pow(beta1, double(step)), rest2 = 1 - std::pow(beta2, double(step));
  return {T(beta1), T(beta2), T(epsilon), T(weight_decay), T(lr / rest1), T(1 / rest2)};
}
#endif

template <class T> PF_HD void adam_element(T& parameter, T& m, T& v, T gradient, const AdamStep<T>& s) {
  const T g = gradient + s.weight_decay * parameter;
  m = s.beta1 * m + (T(1) - s.beta1) * g;
  v = s.beta2 * v + (T(1) - s.beta2) * (g * g);
  parameter -= s.step_size * m / (sqrt(v * s.correction2) + s.epsilon);
}

}  // namespace polyfield
