// Replaces <cstddef>, <cstdint>, <cstring>, <cmath> and <cassert> for NVRTC, which has the
// functions built in but no headers. dsmooth/cuda/images.py provides this file under those names.
#pragma once

using size_t = decltype(sizeof 0);
using ptrdiff_t = long;
using uintptr_t = unsigned long;
using int8_t = signed char;
using uint8_t = unsigned char;
using int16_t = short;
using uint16_t = unsigned short;
using int32_t = int;
using uint32_t = unsigned int;
using int64_t = long;
using uint64_t = unsigned long;
