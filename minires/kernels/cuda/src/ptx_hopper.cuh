// The instructions of sm_90a alone, each with what it does on the CPU (shim/hopper_on_cpu.h).
//
// Tensor cores read their factors from shared memory themselves, by a descriptor, in 64 rows times
// N columns times 32 bytes at once (wgmma, PTX ISA 9.7.15). A warpgroup, 4 warps that begin at a
// multiple of 4, issues them together and waits for groups of them. Shared memory is used in the
// 128-byte swizzle: in rows of 128 bytes, chunk q (16 bytes) of row r lies at place q ^ (r % 8),
// and 8 rows are a pattern of 1024 bytes, which begins at a multiple of 1024.
//
//     Major   a row holds                  next 8 rows       next 128 bytes of a row
//     K       32 bytes of k, four times    stride            start + 32 bytes (the next product)
//     M or N  64 columns of one k          stride            leading
//
// Accumulators as in ptx.cuh: warp w of a warpgroup holds rows 16w to 16w + 15, and a lane's numbers
// 4j to 4j + 3 are of columns 8j to 8j + 7.
#pragma once

#ifndef MINIRES_ON_CPU
#define SWIZZLED_SHARED(name) extern __shared__ __align__(1024) unsigned char name[]
#else
#define SWIZZLED_SHARED(name) unsigned char* name = shim::shared_memory()
#endif

using Barrier = unsigned long long;  // an mbarrier (9.7.13.15)

// One thread initialises a barrier that ends a phase at `count` arrivals; the block then meets.
__device__ __forceinline__ void begin_phases(Barrier* barrier, unsigned count) {
#ifdef MINIRES_ON_CPU
    shim::begin_phases(barrier, count);
#else
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)),
                 "r"(count)
                 : "memory");
#endif
}

// Orders this thread's writes to shared memory, and the barriers that it initialised, before what
// tensor cores and bulk copies do after the next synchronisation.
__device__ __forceinline__ void fence_async() {
#ifdef MINIRES_ON_CPU
    shim::fence_async();
#else
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

__device__ __forceinline__ void arrive(Barrier* barrier) {
#ifdef MINIRES_ON_CPU
    shim::arrive(barrier, 0);
#else
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier))
                 : "memory");
#endif
}

// Arrives, and has the phase wait for this many bytes of bulk copies.
__device__ __forceinline__ void arrive_expecting(Barrier* barrier, unsigned bytes) {
#ifdef MINIRES_ON_CPU
    shim::arrive(barrier, bytes);
#else
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(
                     shared_address(barrier)),
                 "r"(bytes)
                 : "memory");
#endif
}

// Waits for the end of a phase: the first, third, ... has parity 0, the others parity 1.
__device__ __forceinline__ void wait_phase(Barrier* barrier, unsigned parity) {
#ifdef MINIRES_ON_CPU
    shim::wait_phase(barrier, parity);
#else
    unsigned done;
    do {
        asm volatile(
            "{\n.reg .pred p;\n"
            "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
            "selp.u32 %0, 1, 0, p;\n}"
            : "=r"(done)
            : "r"(shared_address(barrier)), "r"(parity)
            : "memory");
    } while (!done);
#endif
}

// One thread copies `bytes`, whole chunks of 16, for which a phase of the barrier waits (9.7.9.25).
__device__ __forceinline__ void copy_bulk(void* to, const void* from, unsigned bytes,
                                          Barrier* barrier) {
#ifdef MINIRES_ON_CPU
    shim::copy_bulk(to, from, bytes, barrier);
#else
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
            "r"(shared_address(to)),
        "l"(__cvta_generic_to_global(from)), "r"(bytes), "r"(shared_address(barrier))
        : "memory");
#endif
}

// So many threads of the block meet at the barrier of this number, 1 to 15; whole warps.
__device__ __forceinline__ void meet(int number, int threads) {
#ifdef MINIRES_ON_CPU
    shim::named_barrier(number, threads);
#else
    asm volatile("bar.sync %0, %1;" ::"r"(number), "r"(threads) : "memory");
#endif
}

// The descriptor of a swizzled matrix (9.7.15.5.1.2.2): its address, and bytes between patterns.
__device__ __forceinline__ unsigned long long describe(const void* matrix, unsigned leading,
                                                       unsigned stride) {
#ifdef MINIRES_ON_CPU
    unsigned address = unsigned(shim::shared_place(matrix, 16)) + shim::SHARED_BASE;
#else
    unsigned address = shared_address(matrix);
#endif
    return (unsigned long long)(address >> 4 & 0x3fff) | (unsigned long long)(leading >> 4) << 16 |
           (unsigned long long)(stride >> 4) << 32 | 1ull << 62;
}

// Before products that use registers which anything else has used.
__device__ __forceinline__ void fence_registers() {
#ifdef MINIRES_ON_CPU
    shim::fence_registers();
#else
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#endif
}

// The same, after the fragments of a factor are in their registers.
template <int COUNT>
__device__ __forceinline__ void fence_registers(unsigned (&fragments)[COUNT][4]) {
#ifndef MINIRES_ON_CPU
#pragma unroll
    for (int i = 0; i < COUNT * 4; ++i)
        asm volatile("" : "+r"(fragments[i / 4][i % 4])::"memory");
#endif
    fence_registers();
}

__device__ __forceinline__ void commit_products() {
#ifdef MINIRES_ON_CPU
    shim::close_products();
#else
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#endif
}

// The sums have their values here, whatever is done with them before and after.
template <int COUNT>
__device__ __forceinline__ void hold(float (&sums)[COUNT]) {
#ifndef MINIRES_ON_CPU
#pragma unroll
    for (int i = 0; i < COUNT; ++i) asm volatile("" : "+f"(sums[i])::"memory");
#endif
}

// Waits until at most `under_way` groups of products are not done; the sums may be used after 0.
template <int under_way, int COUNT>
__device__ __forceinline__ void wait_products(float (&sums)[COUNT]) {
#ifdef MINIRES_ON_CPU
    shim::make_products(under_way);
#else
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(under_way) : "memory");
    hold(sums);
#endif
}

// Which element types the products take.
template <class E>
constexpr int KIND = 0;
template <>
constexpr int KIND<bf16> = 1;
template <>
constexpr int KIND<float> = 2;

#ifndef MINIRES_ON_CPU
// Numbers of operands, and the operands themselves, of 8 to 128 accumulators.
#define NUMBERS_8 "%0, %1, %2, %3, %4, %5, %6, %7"
#define NUMBERS_16 NUMBERS_8 ", " \
    "%8, %9, %10, %11, %12, %13, %14, %15"
#define NUMBERS_32 NUMBERS_16 ", " \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define NUMBERS_64 NUMBERS_32 ", " \
    "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
    "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define NUMBERS_128 NUMBERS_64 ", " \
    "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, " \
    "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, " \
    "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, " \
    "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
#define SUMS_4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define SUMS_8(i) SUMS_4(i), SUMS_4(i + 4)
#define SUMS_16(i) SUMS_8(i), SUMS_8(i + 8)
#define SUMS_32(i) SUMS_16(i), SUMS_16(i + 16)
#define SUMS_64(i) SUMS_32(i), SUMS_32(i + 32)
#define SUMS_128(i) SUMS_64(i), SUMS_64(i + 64)

#define WGMMA(N, COUNT, TYPES, A, PLUS, REST, ...)                                             \
    if constexpr (N_COLUMNS == N)                                                              \
        asm volatile("{\n.reg .pred add;\nsetp.eq.u32 add, 0, 0;\n"                            \
                     "wgmma.mma_async.sync.aligned.m64n" #N TYPES " {" NUMBERS_##COUNT "}, " A \
                     ", %" PLUS ", add, 1, 1" REST ";\n}"                                      \
                     : SUMS_##COUNT(0)                                                         \
                     : __VA_ARGS__)
#define BOTH_SHARED(TYPES, REST)                                               \
    WGMMA(16, 8, TYPES, "%8", "9", REST, "l"(a), "l"(b));                      \
    WGMMA(32, 16, TYPES, "%16", "17", REST, "l"(a), "l"(b));                   \
    WGMMA(64, 32, TYPES, "%32", "33", REST, "l"(a), "l"(b));                   \
    WGMMA(128, 64, TYPES, "%64", "65", REST, "l"(a), "l"(b));                  \
    WGMMA(256, 128, TYPES, "%128", "129", REST, "l"(a), "l"(b))
#define FOUR "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3])
#define TF32 "k8.f32.tf32.tf32"
#endif

// d += a @ b some time before the wait, both factors in shared memory in 16 bits; with MAJOR_MN
// they lie along m and n, otherwise along k.
template <class E, bool MAJOR_MN, int COUNT>
__device__ __forceinline__ void multiply_later(float (&d)[COUNT], unsigned long long a,
                                               unsigned long long b) {
#ifdef MINIRES_ON_CPU
    shim::multiply_later(
        {shim::Kind(KIND<E>), COUNT * 2, d, nullptr, a, b, MAJOR_MN, MAJOR_MN});
#else
    constexpr int N_COLUMNS = COUNT * 2;
    if constexpr (KIND<E> == 0 && MAJOR_MN) {
        BOTH_SHARED("k16.f32.f16.f16", ", 1, 1");
    } else if constexpr (KIND<E> == 0) {
        BOTH_SHARED("k16.f32.f16.f16", ", 0, 0");
    } else if constexpr (MAJOR_MN) {
        BOTH_SHARED("k16.f32.bf16.bf16", ", 1, 1");
    } else {
        BOTH_SHARED("k16.f32.bf16.bf16", ", 0, 0");
    }
#endif
}

// The same in tf32, with a's fragment in registers, as for mma.sync, and b along k. Neither is
// touched before the wait.
template <int COUNT>
__device__ __forceinline__ void multiply_later(float (&d)[COUNT], const unsigned (&a)[4],
                                               unsigned long long b) {
#ifdef MINIRES_ON_CPU
    shim::multiply_later({shim::KIND_TF32, COUNT * 2, d, a, 0, b, false, false});
#else
    constexpr int N_COLUMNS = COUNT * 2;
    WGMMA(16, 8, TF32, "{%8, %9, %10, %11}", "12", "", FOUR, "l"(b));
    WGMMA(32, 16, TF32, "{%16, %17, %18, %19}", "20", "", FOUR, "l"(b));
    WGMMA(64, 32, TF32, "{%32, %33, %34, %35}", "36", "", FOUR, "l"(b));
    WGMMA(128, 64, TF32, "{%64, %65, %66, %67}", "68", "", FOUR, "l"(b));
#endif
}

// As tensor cores take it: floats rounded to tf32, others as they are.
__device__ __forceinline__ float rounded(float x) { return __uint_as_float(to_tf32(x)); }
template <class E>
__device__ __forceinline__ E rounded(E x) {
    return x;
}
