// The vectors of the instruction set that is compiled for. Included inside a namespace.
#if DSMOOTH_VECTOR_BYTES == 64
#include "simd_avx512.h"
#else
#include "simd_vector.h"
#endif
