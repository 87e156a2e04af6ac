// elu and sigmoid, for a float and for the vectors of an instruction set. Included inside a
// namespace that has Vec and its functions: simd.h and elementary.h.
//
// The loss and the gated block have an exp, vectors and products of their own (vector_math.h,
// gemm.h). One for both would change the bits of images or of trained weights.

// e^x - 1 for x <= 0, as 2^n (e^r - 1) + (2^n - 1) with x = n ln 2 + r, |r| <= ln(2)/2: accurate
// near 0 too. `power` is 2^n and `rest` is e^r - 1.
struct Exponential {
  Vec power, rest;
};
DSMOOTH_HOST_DEVICE inline Exponential exponential(Vec x) {
  // e^-87 is the last normal float; from there on e^x - 1 is -1 anyhow.
  x = at_least(x, -87.0f);
  const Vec n = round_whole(multiply_add(x, splat(0x1.715476p+0f), splat(0.0f)));
  Vec r = multiply_add(n, splat(-0x1.62e4p-1f), x);
  r = multiply_add(n, splat(-0x1.7f7d1cp-20f), r);
  // (e^r - 1 - r) / r^2: minimax on |r| <= ln(2)/2, error 1.4e-8 relative to r.
  Vec q = multiply_add(r, splat(0x1.6d99bep-10f), splat(0x1.12288p-7f));
  q = multiply_add(q, r, splat(0x1.555486p-5f));
  q = multiply_add(q, r, splat(0x1.5554aep-3f));
  q = multiply_add(q, r, splat(0.5f));
  return {power_of_two(n), multiply_add(multiply_add(q, r, splat(0.0f)), r, r)};
}
DSMOOTH_HOST_DEVICE inline Vec expm1_negative(Vec x) {
  const Exponential e = exponential(x);
  return multiply_add(e.power, e.rest, e.power - splat(1.0f));
}
DSMOOTH_HOST_DEVICE inline Vec sigmoid(Vec x) {
  const Exponential e = exponential(minus_abs(x));
  const Vec small = multiply_add(e.power, e.rest, e.power);  // e^-|x|
  return quotient(select_positive(x, splat(1.0f), small), splat(1.0f) + small);
}
