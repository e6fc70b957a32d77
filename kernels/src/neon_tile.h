// A register tile of NEON: up to three units x 16 columns, in 24 registers of sums. Local to the file that includes it;
// see sixteen.h.
//
// A unit is 16 bytes of the left operand. One instruction multiplies a unit by 16 bytes of the right operand, which
// belong to two columns, and adds the products to a register of sums.
#pragma once

#include "sixteen.h"

namespace koe5 {
namespace {

constexpr int64_t kUnits = 3;

// The sums of a unit and 16 columns, two columns per register.
template <class Sixteen>
struct UnitSums {
  Sixteen left, right;
};

// Adds the products of kUsed units and two columns.
template <class Dot, int kUsed, class Operand, class Register>
KOE5_INLINE void multiply_two(const Operand (&units)[kUnits], Operand two, Register& sum0, Register& sum1,
                              Register& sum2) {
  sum0 = Dot::multiply(sum0, units[0], two);
  if constexpr (kUsed > 1) sum1 = Dot::multiply(sum1, units[1], two);
  if constexpr (kUsed > 2) sum2 = Dot::multiply(sum2, units[2], two);
}

// Adds the products of kUsed units and 16 columns. Dot provides multiply(sums, unit, two columns) and load(address).
template <class Dot, int kUsed, class Value, class Operand, class Sixteen>
KOE5_INLINE void multiply_columns(const Operand (&units)[kUnits], const Value* columns, UnitSums<Sixteen>& s0,
                                  UnitSums<Sixteen>& s1, UnitSums<Sixteen>& s2) {
  constexpr int64_t kTwo = 16 / sizeof(Value);
  multiply_two<Dot, kUsed>(units, Dot::load(columns), s0.left.a, s1.left.a, s2.left.a);
  multiply_two<Dot, kUsed>(units, Dot::load(columns + kTwo), s0.left.b, s1.left.b, s2.left.b);
  multiply_two<Dot, kUsed>(units, Dot::load(columns + 2 * kTwo), s0.left.c, s1.left.c, s2.left.c);
  multiply_two<Dot, kUsed>(units, Dot::load(columns + 3 * kTwo), s0.left.d, s1.left.d, s2.left.d);
  multiply_two<Dot, kUsed>(units, Dot::load(columns + 4 * kTwo), s0.right.a, s1.right.a, s2.right.a);
  multiply_two<Dot, kUsed>(units, Dot::load(columns + 5 * kTwo), s0.right.b, s1.right.b, s2.right.b);
  multiply_two<Dot, kUsed>(units, Dot::load(columns + 6 * kTwo), s0.right.c, s1.right.c, s2.right.c);
  multiply_two<Dot, kUsed>(units, Dot::load(columns + 7 * kTwo), s0.right.d, s1.right.d, s2.right.d);
}

// Stores the sums of a unit of two rows. Each register holds two columns of the first row, then of the second.
template <class Sixteen, class Value>
KOE5_INLINE void store_two_rows(const UnitSums<Sixteen>& sums, Value* first, Value* second) {
  const Sixteen &l = sums.left, &r = sums.right;
  store(first, Sixteen{zip_low64(l.a, l.b), zip_low64(l.c, l.d), zip_low64(r.a, r.b), zip_low64(r.c, r.d)});
  store(second, Sixteen{zip_high64(l.a, l.b), zip_high64(l.c, l.d), zip_high64(r.a, r.b), zip_high64(r.c, r.d)});
}

}  // namespace
}  // namespace koe5
