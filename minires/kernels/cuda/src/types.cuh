// Types and memory accesses that every source shares. T, given to the compiler as ELEMENT, is the
// type in memory, and Sum<T> the type of arithmetic: float, or double for double.
#pragma once

#ifndef MINIRES_ON_CPU
#define DYNAMIC_SHARED(type, name)                                  \
    extern __shared__ __align__(128) unsigned char dynamic_bytes[]; \
    type* name = reinterpret_cast<type*>(dynamic_bytes)
#endif

struct f16 {
    unsigned short bits;
};
struct bf16 {
    unsigned short bits;
};

template <class E>
struct SumOf {
    using type = float;
};
template <>
struct SumOf<double> {
    using type = double;
};
template <class E>
using Sum = typename SumOf<E>::type;

using T = ELEMENT;

__device__ __forceinline__ float wide(float x) { return x; }
__device__ __forceinline__ double wide(double x) { return x; }
__device__ __forceinline__ float wide(bf16 x) { return __uint_as_float(unsigned(x.bits) << 16); }
__device__ __forceinline__ float wide(f16 x) {
#ifdef MINIRES_ON_CPU
    _Float16 half;
    memcpy(&half, &x, 2);
    return float(half);
#else
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
    return y;
#endif
}

__device__ __forceinline__ void narrow(float& y, float x) { y = x; }
__device__ __forceinline__ void narrow(float& y, double x) { y = float(x); }
__device__ __forceinline__ void narrow(double& y, double x) { y = x; }
// Round to nearest, ties to even; a NaN stays one.
__device__ __forceinline__ void narrow(bf16& y, float x) {
    unsigned bits = __float_as_uint(x);
    unsigned rounded = bits + 0x7fffu + (bits >> 16 & 1u);
    y.bits = x == x ? (unsigned short)(rounded >> 16) : (unsigned short)0x7fc0;
}
__device__ __forceinline__ void narrow(f16& y, float x) {
#ifdef MINIRES_ON_CPU
    _Float16 half = _Float16(x);
    memcpy(&y, &half, 2);
#else
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
#endif
}

// Kernels bound by memory say __launch_bounds__(256, 2): with no second number, the compiler may
// spill a few registers to reach an occupancy that they do not need.

// The elements of 16 bytes, which one instruction reads or writes.
template <class E>
constexpr int PACK = 16 / sizeof(E);

// V elements side by side: a PACK, or a single one where memory is not aligned to 16 bytes.
template <class E, int V>
struct __align__(V * sizeof(E)) Some {
    E at[V];
};

template <int V, class E>
__device__ __forceinline__ Some<E, V> load(const E* p) {
#ifdef MINIRES_ON_CPU
    if (reinterpret_cast<uintptr_t>(p) % (V * sizeof(E))) shim::fail("a load is not aligned");
#endif
    return *reinterpret_cast<const Some<E, V>*>(p);
}
template <int V, class E>
__device__ __forceinline__ void store(E* p, const Some<E, V>& values) {
#ifdef MINIRES_ON_CPU
    if (reinterpret_cast<uintptr_t>(p) % (V * sizeof(E))) shim::fail("a store is not aligned");
#endif
    *reinterpret_cast<Some<E, V>*>(p) = values;
}

// NVRTC has no math.h, and so no INFINITY and no NAN.
__device__ __forceinline__ float infinity() { return __uint_as_float(0x7f800000u); }
__device__ __forceinline__ float not_a_number() { return __uint_as_float(0x7fc00000u); }

// Rounding up.
__host__ __device__ constexpr long long ceil_div(long long a, long long b) {
    return (a + b - 1) / b;
}
