// Sixteen values in four registers; see sixteen.h. Requires only instructions that every 64-bit ARM CPU has.
#pragma once

#include <arm_neon.h>

namespace koe5 {
namespace {

// Copied member by member for the reason given in sixteen_avx2.h.
#define KOE5_QUARTERS(Type, Register)                                                                    \
  struct Type {                                                                                          \
    Register a, b, c, d;                                                                                 \
    Type() = default;                                                                                    \
    KOE5_INLINE Type(Register a_, Register b_, Register c_, Register d_) : a(a_), b(b_), c(c_), d(d_) {} \
    KOE5_INLINE Type(const Type& from) : a(from.a), b(from.b), c(from.c), d(from.d) {}                   \
    KOE5_INLINE Type& operator=(const Type& from) {                                                      \
      a = from.a, b = from.b, c = from.c, d = from.d;                                                    \
      return *this;                                                                                      \
    }                                                                                                    \
  };
KOE5_QUARTERS(Floats, float32x4_t)
KOE5_QUARTERS(Ints, int32x4_t)
#undef KOE5_QUARTERS

struct Halves {  // sixteen 16-bit values
  uint16x8_t low, high;
};

// Maximum number of Floats per row of a register tile: with 6 rows, the sums take 24 of 32 registers.
constexpr int kMostVectors = 1;

KOE5_INLINE Floats all(float32x4_t x) { return {x, x, x, x}; }
KOE5_INLINE Ints all(int32x4_t x) { return {x, x, x, x}; }
KOE5_INLINE Floats zeros() { return all(vdupq_n_f32(0)); }
KOE5_INLINE Ints int_zeros() { return all(vdupq_n_s32(0)); }
KOE5_INLINE Floats spread(float x) { return all(vdupq_n_f32(x)); }
KOE5_INLINE Ints spread_int(int32_t x) { return all(vdupq_n_s32(x)); }

KOE5_INLINE Floats load(const float* from) {
  return {vld1q_f32(from), vld1q_f32(from + 4), vld1q_f32(from + 8), vld1q_f32(from + 12)};
}
// Loads quarter `quarter` of the 64 bytes at `from`. Loading bytes allows any type and alignment.
KOE5_INLINE int32x4_t load_four(const void* from, int64_t quarter) {
  return vreinterpretq_s32_u8(vld1q_u8(static_cast<const uint8_t*>(from) + 16 * quarter));
}
KOE5_INLINE void store_four(void* to, int64_t quarter, int32x4_t x) {
  vst1q_u8(static_cast<uint8_t*>(to) + 16 * quarter, vreinterpretq_u8_s32(x));
}
KOE5_INLINE Ints load_ints(const void* from) {
  return {load_four(from, 0), load_four(from, 1), load_four(from, 2), load_four(from, 3)};
}
KOE5_INLINE void store(float* to, Floats x) {
  vst1q_f32(to, x.a), vst1q_f32(to + 4, x.b), vst1q_f32(to + 8, x.c), vst1q_f32(to + 12, x.d);
}
KOE5_INLINE void store(void* to, Ints x) {
  store_four(to, 0, x.a), store_four(to, 1, x.b), store_four(to, 2, x.c), store_four(to, 3, x.d);
}
KOE5_INLINE Halves load_halves(const uint16_t* from) { return {vld1q_u16(from), vld1q_u16(from + 8)}; }
KOE5_INLINE void store_halves(uint16_t* to, Halves x) { vst1q_u16(to, x.low), vst1q_u16(to + 8, x.high); }

// Operations on the 16-bit or 64-bit lanes of one register.
KOE5_INLINE int16x8_t as_s16(int32x4_t x) { return vreinterpretq_s16_s32(x); }
KOE5_INLINE uint16x8_t as_u16(int32x4_t x) { return vreinterpretq_u16_s32(x); }
KOE5_INLINE int32x4_t add_halves(int32x4_t x, int32x4_t y) {
  return vreinterpretq_s32_s16(vaddq_s16(as_s16(x), as_s16(y)));
}
KOE5_INLINE int32x4_t larger_halves(int32x4_t x, int32x4_t y) {
  return vreinterpretq_s32_u16(vmaxq_u16(as_u16(x), as_u16(y)));
}
KOE5_INLINE int32x4_t zip_low64(int32x4_t x, int32x4_t y) {
  return vreinterpretq_s32_s64(vzip1q_s64(vreinterpretq_s64_s32(x), vreinterpretq_s64_s32(y)));
}
KOE5_INLINE int32x4_t zip_high64(int32x4_t x, int32x4_t y) {
  return vreinterpretq_s32_s64(vzip2q_s64(vreinterpretq_s64_s32(x), vreinterpretq_s64_s32(y)));
}
KOE5_INLINE float32x4_t zip_low64(float32x4_t x, float32x4_t y) {
  return vreinterpretq_f32_s32(zip_low64(vreinterpretq_s32_f32(x), vreinterpretq_s32_f32(y)));
}
KOE5_INLINE float32x4_t zip_high64(float32x4_t x, float32x4_t y) {
  return vreinterpretq_f32_s32(zip_high64(vreinterpretq_s32_f32(x), vreinterpretq_s32_f32(y)));
}

#define KOE5_EACH(Type, name, operation)                                                         \
  KOE5_INLINE Type name(Type x, Type y) {                                                        \
    return {operation(x.a, y.a), operation(x.b, y.b), operation(x.c, y.c), operation(x.d, y.d)}; \
  }
KOE5_EACH(Floats, add, vaddq_f32)
KOE5_EACH(Floats, subtract, vsubq_f32)
KOE5_EACH(Floats, multiply, vmulq_f32)
KOE5_EACH(Floats, divide, vdivq_f32)
// If one of x and y is NaN, returns the other one.
KOE5_EACH(Floats, larger_of, vmaxnmq_f32)
KOE5_EACH(Ints, add, vaddq_s32)
KOE5_EACH(Ints, subtract, vsubq_s32)
KOE5_EACH(Ints, multiply, vmulq_s32)
KOE5_EACH(Ints, larger_of, vmaxq_s32)
KOE5_EACH(Ints, both, vandq_s32)
KOE5_EACH(Ints, either, vorrq_s32)
KOE5_EACH(Ints, add_halves, add_halves)
KOE5_EACH(Ints, larger_halves, larger_halves)
// The next four operate within each 128 bits.
KOE5_EACH(Ints, interleave_low32, vzip1q_s32)
KOE5_EACH(Ints, interleave_high32, vzip2q_s32)
KOE5_EACH(Ints, interleave_low64, zip_low64)
KOE5_EACH(Ints, interleave_high64, zip_high64)
#undef KOE5_EACH

#define KOE5_EACH(To, From, name, operation) \
  KOE5_INLINE To name(From x) { return {operation(x.a), operation(x.b), operation(x.c), operation(x.d)}; }
KOE5_EACH(Ints, Floats, bits_of, vreinterpretq_s32_f32)
KOE5_EACH(Floats, Ints, floats_of_bits, vreinterpretq_f32_s32)
KOE5_EACH(Floats, Ints, to_floats, vcvtq_f32_s32)
KOE5_EACH(Ints, Floats, rounded, vcvtnq_s32_f32)
KOE5_EACH(Floats, Floats, floor_of, vrndmq_f32)
#undef KOE5_EACH

KOE5_INLINE Floats multiply_add(Floats x, Floats y, Floats z) {
  return {vfmaq_f32(z.a, x.a, y.a), vfmaq_f32(z.b, x.b, y.b), vfmaq_f32(z.c, x.c, y.c), vfmaq_f32(z.d, x.d, y.d)};
}
KOE5_INLINE float32x4_t smaller_magnitude(float32x4_t x, float32x4_t end) {
  return vbslq_f32(vdupq_n_u32(0x80000000), x, vminnmq_f32(vabsq_f32(x), end));
}
// Returns the smaller of the magnitudes of x and `end`, with the sign of x. `end` counts as the smaller one if x is
// NaN.
KOE5_INLINE Floats smaller_magnitude(Floats x, Floats end) {
  return {smaller_magnitude(x.a, end.a), smaller_magnitude(x.b, end.b), smaller_magnitude(x.c, end.c),
          smaller_magnitude(x.d, end.d)};
}
template <int kBits>
KOE5_INLINE Ints shift_left(Ints x) {
  return {vshlq_n_s32(x.a, kBits), vshlq_n_s32(x.b, kBits), vshlq_n_s32(x.c, kBits), vshlq_n_s32(x.d, kBits)};
}
template <int kBits>
KOE5_INLINE int32x4_t shift_right(int32x4_t x) {
  return vreinterpretq_s32_u32(vshrq_n_u32(vreinterpretq_u32_s32(x), kBits));
}
template <int kBits>
KOE5_INLINE Ints shift_right(Ints x) {
  return {shift_right<kBits>(x.a), shift_right<kBits>(x.b), shift_right<kBits>(x.c), shift_right<kBits>(x.d)};
}

// Adds the lower and the upper half of the lanes, then the halves of the result, and so on, as _mm512_reduce_add_ps
// does.
KOE5_INLINE float sum_of(Floats x) {
  const float32x4_t four = vaddq_f32(vaddq_f32(x.a, x.c), vaddq_f32(x.b, x.d));
  return vaddv_f32(vadd_f32(vget_low_f32(four), vget_high_f32(four)));
}
KOE5_INLINE float largest_of(Floats x) {
  return vmaxnmvq_f32(vmaxnmq_f32(vmaxnmq_f32(x.a, x.b), vmaxnmq_f32(x.c, x.d)));
}
KOE5_INLINE int32_t largest_of(Ints x) { return vmaxvq_s32(vmaxq_s32(vmaxq_s32(x.a, x.b), vmaxq_s32(x.c, x.d))); }
KOE5_INLINE float first_of(Floats x) { return vgetq_lane_f32(x.a, 0); }
KOE5_INLINE float root_of(float x) { return vget_lane_f32(vsqrt_f32(vdup_n_f32(x)), 0); }

KOE5_INLINE int32x4_t widen(uint16x4_t halves) { return vreinterpretq_s32_u32(vmovl_u16(halves)); }
KOE5_INLINE Ints widen(Halves x) {
  return {widen(vget_low_u16(x.low)), widen(vget_high_u16(x.low)), widen(vget_low_u16(x.high)),
          widen(vget_high_u16(x.high))};
}
KOE5_INLINE Halves upper_halves(Ints x) {
  return {vuzp2q_u16(as_u16(x.a), as_u16(x.b)), vuzp2q_u16(as_u16(x.c), as_u16(x.d))};
}
KOE5_INLINE float32x4_t from_fp16(uint16x4_t x) { return vcvt_f32_f16(vreinterpret_f16_u16(x)); }
KOE5_INLINE Floats from_fp16(Halves x) {
  return {from_fp16(vget_low_u16(x.low)), from_fp16(vget_high_u16(x.low)), from_fp16(vget_low_u16(x.high)),
          from_fp16(vget_high_u16(x.high))};
}
KOE5_INLINE uint16x8_t to_fp16(float32x4_t low, float32x4_t high) {
  return vreinterpretq_u16_f16(vcvt_high_f16_f32(vcvt_f16_f32(low), high));
}
KOE5_INLINE Halves to_fp16(Floats x) { return {to_fp16(x.a, x.b), to_fp16(x.c, x.d)}; }
KOE5_INLINE int32x4_t where_nan(float32x4_t x, int32x4_t there, int32x4_t otherwise) {
  return vbslq_s32(vceqq_f32(x, x), otherwise, there);
}
// Returns `there` in lanes in which x is NaN, and `otherwise` in the others.
KOE5_INLINE Ints where_nan(Floats x, Ints there, Ints otherwise) {
  return {where_nan(x.a, there.a, otherwise.a), where_nan(x.b, there.b, otherwise.b),
          where_nan(x.c, there.c, otherwise.c), where_nan(x.d, there.d, otherwise.d)};
}

// Raises x to at least -127, for which scale_by_floor returns 0. NaN stays NaN.
KOE5_INLINE Floats exponent_in_range(Floats x) {
  const float32x4_t least = vdupq_n_f32(-127);
  return {vmaxq_f32(x.a, least), vmaxq_f32(x.b, least), vmaxq_f32(x.c, least), vmaxq_f32(x.d, least)};
}
KOE5_INLINE Floats fraction_of(Floats x) { return subtract(x, floor_of(x)); }
// Returns p * 2^floor(x), for x up to 127, or NaN if x is NaN.
KOE5_INLINE Floats scale_by_floor(Floats p, Floats x) {
  const Ints exponent = add(rounded(floor_of(x)), spread_int(127));
  return multiply(p, floats_of_bits(shift_left<23>(exponent)));
}

// Loads sixteen 16-bit values if `present`, otherwise returns zeros.
KOE5_INLINE Halves load_halves_if(bool present, const uint16_t* from) {
  return present ? load_halves(from) : Halves{vdupq_n_u16(0), vdupq_n_u16(0)};
}
KOE5_INLINE int32x4_t load_four_if(bool present, const void* from, int64_t quarter) {
  return present ? load_four(from, quarter) : vdupq_n_s32(0);
}
// Loads the first n of sixteen 32-bit values, where n >= 0 is a multiple of 4. The others are zero, and their memory is
// not read.
KOE5_INLINE Ints load_first(const void* from, int64_t n) {
  return {load_four_if(n > 0, from, 0), load_four_if(n > 4, from, 1), load_four_if(n > 8, from, 2),
          load_four_if(n > 12, from, 3)};
}
// Stores x without its first n values. Their memory is read and written back unchanged.
KOE5_INLINE void store_beyond(float* to, int64_t n, Floats x) {
  const uint32_t first[4] = {0, 1, 2, 3};
  const uint32x4_t lane = vld1q_u32(first), from = vdupq_n_u32(n > 0 ? static_cast<uint32_t>(n) : 0);
  const auto select = [&](uint32_t quarter, float32x4_t values, float32x4_t old) {
    return vbslq_f32(vcgeq_u32(vaddq_u32(lane, vdupq_n_u32(4 * quarter)), from), values, old);
  };
  const Floats old = load(to);
  store(to, Floats{select(0, x.a, old.a), select(1, x.b, old.b), select(2, x.c, old.c), select(3, x.d, old.d)});
}

KOE5_INLINE Ints spread_half(int32_t x) { return all(vreinterpretq_s32_s16(vdupq_n_s16(static_cast<int16_t>(x)))); }
KOE5_INLINE Halves low_half(Ints x) { return {as_u16(x.a), as_u16(x.b)}; }
KOE5_INLINE Halves high_half(Ints x) { return {as_u16(x.c), as_u16(x.d)}; }
KOE5_INLINE Ints halves_of(Halves low, Halves high) {
  return {vreinterpretq_s32_u16(low.low), vreinterpretq_s32_u16(low.high), vreinterpretq_s32_u16(high.low),
          vreinterpretq_s32_u16(high.high)};
}

KOE5_INLINE int32x4_t pack_halves(int32x4_t x, int32x4_t y) {
  return vreinterpretq_s32_s16(vqmovn_high_s32(vqmovn_s32(x), y));
}
// Converts 32 values to 16 bits with saturation, in order.
KOE5_INLINE Ints pack_halves(Ints x, Ints y) {
  return {pack_halves(x.a, x.b), pack_halves(x.c, x.d), pack_halves(y.a, y.b), pack_halves(y.c, y.d)};
}
KOE5_INLINE int32x4_t to_bytes(int32x4_t x, int32x4_t y) {
  return vreinterpretq_s32_u8(vqmovun_high_s16(vqmovun_s16(as_s16(x)), as_s16(y)));
}
// Converts the results of two pack_halves calls to 64 bytes in order, saturated to 0..255.
KOE5_INLINE Ints to_bytes(Ints x, Ints y) {
  return {to_bytes(x.a, x.b), to_bytes(x.c, x.d), to_bytes(y.a, y.b), to_bytes(y.c, y.d)};
}
// Stores the first n bytes, where n is a multiple of 16, or all if n is at least 64.
KOE5_INLINE void store_bytes(uint8_t* to, Ints bytes, int64_t n) {
  store_four(to, 0, bytes.a);
  if (n > 16) store_four(to, 1, bytes.b);
  if (n > 32) store_four(to, 2, bytes.c);
  if (n > 48) store_four(to, 3, bytes.d);
}

// Return the first and third (even) or second and fourth (odd) 128 bits of x, then those of y.
KOE5_INLINE Ints even_quarters(Ints x, Ints y) { return {x.a, x.c, y.a, y.c}; }
KOE5_INLINE Ints odd_quarters(Ints x, Ints y) { return {x.b, x.d, y.b, y.d}; }

// Four tables of 32 values, sixteen lookups at a time. One load reads the values of an index in all four tables, which
// are adjacent. If several tables are read at the same indices, the compiler loads them only once.
template <int kTables, const float (&kValues)[kTables][32]>
struct Tables {
  static_assert(kTables == 4);
  struct ByIndex {
    alignas(16) float values[32][4] = {};
    constexpr ByIndex() {
      for (int i = 0; i < 32; ++i) {
        for (int table = 0; table < 4; ++table) values[i][table] = kValues[table][i];
      }
    }
  };
  static constexpr ByIndex kByIndex{};

  // Uses the lowest five bits of `at`.
  template <int kTable>
  KOE5_INLINE Floats of(Ints at) const {
    return {four_of<kTable>(at.a), four_of<kTable>(at.b), four_of<kTable>(at.c), four_of<kTable>(at.d)};
  }
  template <int kTable>
  static KOE5_INLINE float32x4_t four_of(int32x4_t at) {
    const uint64x2_t index = vreinterpretq_u64_s32(at);
    const uint64_t low = vgetq_lane_u64(index, 0), high = vgetq_lane_u64(index, 1);
    const int32x4_t r0 = values_of(low), r1 = values_of(low >> 32), r2 = values_of(high), r3 = values_of(high >> 32);
    constexpr bool kUpper = kTable > 1;
    const int32x4_t r01 = kUpper ? vzip2q_s32(r0, r1) : vzip1q_s32(r0, r1);
    const int32x4_t r23 = kUpper ? vzip2q_s32(r2, r3) : vzip1q_s32(r2, r3);
    return vreinterpretq_f32_s32(kTable % 2 == 1 ? zip_high64(r01, r23) : zip_low64(r01, r23));
  }
  static KOE5_INLINE int32x4_t values_of(uint64_t index) { return load_four(kByIndex.values[index & 31], 0); }
};

}  // namespace
}  // namespace koe5
