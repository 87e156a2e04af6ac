// exp, exp - 1 and log of vector_math.h. Compiled once per instruction set: see vector_math.h for
// the restrictions.
#include "../common/vector_math.h"

namespace dsmooth::DSMOOTH_ISA {

template <class T>
void elementary(const T* x, int64_t count, T* exp, T* expm1, T* log) {
  using M = VectorMath<T>;
  for (int64_t i = 0; i < count; i += M::kLanes) {
    const int lanes = count - i < M::kLanes ? static_cast<int>(count - i) : M::kLanes;
    const auto v = M::load(x + i, lanes);
    const auto pair = M::exp_pair(v);
    M::store(pair.e, exp + i, lanes);
    M::store(pair.em1, expm1 + i, lanes);
    M::store(M::log(v), log + i, lanes);
  }
}

template void elementary(const float*, int64_t, float*, float*, float*);
template void elementary(const double*, int64_t, double*, double*, double*);

}  // namespace dsmooth::DSMOOTH_ISA
