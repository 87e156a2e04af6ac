// Scalars used beside the vectors. Included inside the namespace of each instruction set, and by
// the portable code, so that each has its own copy.

// (e^r - 1 - r) / r^2 = kExp2 + kExp3 r + ...: minimax on |r| <= ln(2)/2, error 1.4e-8 relative to
// r.
constexpr float kExp2 = 0.5f, kExp3 = 0x1.5554aep-3f, kExp4 = 0x1.555486p-5f;
constexpr float kExp5 = 0x1.12288p-7f, kExp6 = 0x1.6d99bep-10f;
