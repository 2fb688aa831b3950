// The instructions that CUDA C++ has no words for, each with what it does in C++ beside it.
//
// Matrix instructions are made by a warp together. A lane holds few elements of each factor; which
// ones is the table of the PTX manual (mma.m16n8k8 for tf32, mma.m16n8k16 for f16 and bf16): with
// g = lane / 4 and t = lane % 4,
//
//     tf32       A: rows g, g+8, columns t, t+4      B: rows t, t+4, column g
//     f16, bf16  A: rows g, g+8, columns 2t, 2t+1, 2t+8, 2t+9      B: the same rows, column g
//     C and D    rows g, g+8, columns 2t, 2t+1
#pragma once

#ifndef MINIRES_ON_CPU
__device__ __forceinline__ unsigned shared_address(const void* p) {
    return unsigned(__cvta_generic_to_shared(p));
}
#endif

// Copies 16 bytes to shared memory some time before the wait; zeros if not `valid`.
__device__ __forceinline__ void copy_async_16(void* to, const void* from, bool valid) {
#ifdef MINIRES_ON_CPU
    shim::copy_later(to, from, 16, valid ? 16 : 0);
#else
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)),
                 "l"(__cvta_generic_to_global(from)), "r"(valid ? 16 : 0)
                 : "memory");
#endif
}

// Closes a group of copies.
__device__ __forceinline__ void commit_copies() {
#ifdef MINIRES_ON_CPU
    shim::close_group();
#else
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits until at most `under_way` of this thread's groups are not done.
template <int under_way>
__device__ __forceinline__ void wait_copies() {
#ifdef MINIRES_ON_CPU
    shim::make_copies(under_way);
#else
    asm volatile("cp.async.wait_group %0;" ::"n"(under_way) : "memory");
#endif
}

// A float as tf32: 10 bits of fraction, rounded to nearest, ties away from zero.
__device__ __forceinline__ unsigned to_tf32(float x) {
#ifdef MINIRES_ON_CPU
    return x == x ? (__float_as_uint(x) + 0x1000u) & ~0x1fffu : __float_as_uint(x);
#else
    unsigned y;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(y) : "f"(x));
    return y;
#endif
}

// Four 8x8 matrices of 16-bit numbers (or 8x4 of 32-bit ones) from rows of 16 bytes in shared
// memory: lane 8i + r gives the address of row r of matrix i, and receives, of each matrix, the 4
// bytes at row lane / 4, place lane % 4.
__device__ __forceinline__ void load_matrices(unsigned (&into)[4], const void* row) {
#ifdef MINIRES_ON_CPU
    auto slot = shim::exchange_rows(row);
    int lane = shim::current->lane;
    for (int i = 0; i < 4; ++i) {
        auto from = shim::taken<const unsigned*>(slot, i * 8 + lane / 4);
        into[i] = from[lane % 4];
    }
#else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(into[0]), "=r"(into[1]), "=r"(into[2]), "=r"(into[3])
                 : "r"(shared_address(row)));
#endif
}

// The same, with each 8x8 matrix of 16-bit numbers transposed.
__device__ __forceinline__ void load_matrices_transposed(unsigned (&into)[4], const void* row) {
#ifdef MINIRES_ON_CPU
    auto slot = shim::exchange_rows(row);
    int lane = shim::current->lane;
    for (int i = 0; i < 4; ++i) {
        unsigned both = 0;
        for (int k = 0; k < 2; ++k) {
            int line = i * 8 + lane % 4 * 2 + k;
            both |= unsigned(shim::taken<const unsigned short*>(slot, line)[lane / 4]) << 16 * k;
        }
        into[i] = both;
    }
#else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(into[0]), "=r"(into[1]), "=r"(into[2]), "=r"(into[3])
                 : "r"(shared_address(row)));
#endif
}

#ifdef MINIRES_ON_CPU
struct Fragments {
    unsigned a[4], b[2];
};

// Element k of a fragment's row: which lane's which register, and which half of it.
template <class E>
inline float element(const unsigned* registers, int high, int k, int step) {
    if (sizeof(E) == 4) return __uint_as_float(registers[high + step * (k / 4)]);
    E half;
    memcpy(&half, reinterpret_cast<const char*>(registers + high + step * (k / 8)) + k % 2 * 2,
           sizeof(E));
    return float(wide(half));
}

template <class E>
inline void multiply_emulated(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    constexpr int K = 32 / sizeof(E), QUAD = 4 / sizeof(E);  // columns; numbers in a register
    Fragments own = {{a[0], a[1], a[2], a[3]}, {b[0], b[1]}};
    auto slot = shim::exchange(0xffffffffu, own);
    int lane = shim::current->lane;
    for (int i = 0; i < 4; ++i) {
        int row = lane / 4, column = lane % 4 * 2 + i % 2;
        for (int k = 0; k < K; ++k) {
            int quad = k % (K / 2) / QUAD;
            auto left = reinterpret_cast<const Fragments*>(slot[row * 4 + quad]);
            auto right = reinterpret_cast<const Fragments*>(slot[column * 4 + quad]);
            d[i] += element<E>(left->a, i / 2, k, 2) * element<E>(right->b, 0, k, 1);
        }
    }
}
#endif

// d += a @ b on the tensor cores: 16 rows, 8 columns, 32 bytes of each factor's row.
template <class E>
__device__ __forceinline__ void multiply_matrices(float (&d)[4], const unsigned (&a)[4],
                                                  const unsigned (&b)[2]);

#ifdef MINIRES_ON_CPU
#define MULTIPLY_MATRICES(E, INSTRUCTION)                                                     \
    template <>                                                                               \
    inline void multiply_matrices<E>(float (&d)[4], const unsigned (&a)[4],                   \
                                     const unsigned (&b)[2]) {                                \
        multiply_emulated<E>(d, a, b);                                                        \
    }
#else
#define MULTIPLY_MATRICES(E, INSTRUCTION)                                                     \
    template <>                                                                               \
    __device__ __forceinline__ void multiply_matrices<E>(float (&d)[4],                       \
                                                         const unsigned (&a)[4],              \
                                                         const unsigned (&b)[2]) {            \
        asm("mma.sync.aligned." INSTRUCTION                                                   \
            " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"                \
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                  \
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));              \
    }
#endif
MULTIPLY_MATRICES(f16, "m16n8k16.row.col.f32.f16.f16.f32")
MULTIPLY_MATRICES(bf16, "m16n8k16.row.col.f32.bf16.bf16.f32")
MULTIPLY_MATRICES(float, "m16n8k8.row.col.f32.tf32.tf32.f32")
