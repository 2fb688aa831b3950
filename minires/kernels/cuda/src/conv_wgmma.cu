// Convolution on Hopper's tensor cores (wgmma, sm_90a): the implicit product of conv_implicit.cu,
// forward and input gradient, in f16, bf16, or float rounded to tf32; sums in float32.
//
//     Y[m, o] = sum_k X[m, k] * W[o, k]      m = (n,i,j), k = (u,v,c)
//
// A block makes 128 x BN numbers in steps of 128 bytes of k. What is new over conv_tensor.cu:
//
// - Tensor cores read shared memory themselves, 64 x BN x 32 bytes at an instruction, so a warp
//   loads nothing, and issues a step in four instructions while the last step's are under way.
// - One warpgroup does nothing but copy, so that the addresses of windows cost the others nothing.
// - The weights are packed once a call in the order of the steps, rounded, zeros included, so a
//   step's weights are one bulk copy, which a single thread starts.
// - Results go through shared memory, so that memory is written in rows of 16-byte pieces.
//
// X is gathered by 16-byte copies, zeros where the window leaves the image. In tf32, X passes
// through registers to be rounded (tensor cores take registers as first factor); all else is equal.
#include "types.cuh"
#include "geometry.cuh"
#include "ptx.cuh"
#include "ptx_hopper.cuh"
#include "pipeline.cuh"

constexpr int BM = 128, ROW = 128, V = PACK<T>, BK = ROW / sizeof(T);
constexpr int STAGE = (BM + BN) * ROW, ROWS = WARPGROUP / 8, COPIES = BM / ROWS;
constexpr int PITCH = BN * sizeof(T) + 8 * sizeof(T);  // of results in shared memory: no conflicts
constexpr int TURNS = sizeof(T) / 2;  // sets of X's fragments, if they are held in registers
constexpr int BLOCKS = BN * sizeof(T) > 128 ? 1 : 2;  // on a multiprocessor, as registers allow
static_assert(BM * PITCH <= STAGES * STAGE, "results take the place of the stages");

// What a pass makes and reads, in one group and for one residue of the stride.
struct Pass {
    Axis h, w;
    int S, D;  // channels that are summed up, and that are made
};

__device__ __forceinline__ Pass pass_of(int gradient, int residue, GEOMETRY) {
    if (!gradient)
        return {forward_axis(H, OH, KH, sh, ph, dh), forward_axis(W, OW, KW, sw, pw, dw), C / G,
                O / G};
    return {gradient_axis(H, OH, KH, sh, ph, dh, residue / sw),
            gradient_axis(W, OW, KW, sw, pw, dw, residue % sw), O / G, C / G};
}
#define SIZES N, C, H, W, O, OH, OW, KH, KW, sh, sw, ph, pw, dh, dw, G

// packed[group, residue, piece of D, step]: BN rows of 128 bytes, swizzled. A thread per 16 bytes.
extern "C" __global__ void __launch_bounds__(256)
pack_weight(const T* __restrict__ weight, T* __restrict__ packed, int gradient, int most_steps,
            int pieces, GEOMETRY) {
    int residues = gradient ? sh * sw : 1;
    long long count = (long long)G * residues * pieces * most_steps * BN * 8;
    long long stride = (long long)gridDim.x * blockDim.x;
    for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += stride) {
        // Neighbouring threads read along memory: the last axis of weight is S forward, D backward.
        int row = gradient ? i % BN : i / 8 % BN, q = gradient ? i / BN % 8 : i % 8;
        long long tile = i / (8 * BN);
        int step = tile % most_steps, piece = tile / most_steps % pieces;
        int place = int(tile / most_steps / pieces), group = place / residues;
        Pass pass = pass_of(gradient, place % residues, SIZES);
        int d = piece * BN + row, k = (step * 8 + q) * V, tap = k / pass.S, c = k % pass.S;
        bool inside = d < pass.D && tap < pass.h.taps * pass.w.taps;
        Some<T, V> chunk = {};
        if (inside) {
            int u = pass.h.tap_first + tap / pass.w.taps * pass.h.tap_step;
            int v = pass.w.tap_first + tap % pass.w.taps * pass.w.tap_step, uv = u * KW + v;
            for (int e = 0; e < V; ++e) {
                long long o = group * (O / G) + (gradient ? c + e : d), s = gradient ? d : c + e;
                chunk.at[e] = rounded(weight[(o * KH * KW + uv) * (C / G) + s]);
            }
        }
        store<V>(packed + tile * BN * BK + row * BK + (q ^ row % 8) * V, chunk);
    }
}

// Of one of the block's pixels: where its window begins, and where its result goes.
struct Pixel {
    long long base, to;
    int top, left;
};

// grid: (pieces of pixels, pieces of D, G * residues)
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
gather(const T* __restrict__ source, const T* __restrict__ packed, T* __restrict__ result,
       int gradient, int most_steps, GEOMETRY) {
    SWIZZLED_SHARED(shared);
    auto table = reinterpret_cast<Pixel*>(shared + STAGES * STAGE);
    auto barriers = reinterpret_cast<Barrier*>(table + BM);
    Pipeline pipeline = {barriers, barriers + STAGES};
    Pass pass = pass_of(gradient, blockIdx.z / G, SIZES);
    Axis ah = pass.h, aw = pass.w;
    int S = pass.S, D = pass.D, group = blockIdx.z % G, d0 = blockIdx.y * BN;
    long long pixels = (long long)N * ah.count * aw.count, m0 = (long long)blockIdx.x * BM;
    int steps = (ah.taps * aw.taps * S + BK * TURNS - 1) / (BK * TURNS) * TURNS;
    if (m0 >= pixels) return;

    if (threadIdx.x == 0) begin_pipeline(pipeline, 1);
    if (threadIdx.x < BM) {
        long long m = m0 + threadIdx.x, n = m / aw.count / ah.count;
        int j = m % aw.count, i = m / aw.count % ah.count;
        int h = i * ah.place + ah.first, w = j * aw.place + aw.first;
        bool inside = m < pixels;
        table[threadIdx.x] = {n * ah.read * aw.read * G * S + group * S,
                              inside ? ((n * ah.made + h) * aw.made + w) * G * D + group * D : -1,
                              inside ? i * ah.step + ah.origin : -(1 << 30),  // of no image
                              j * aw.step + aw.origin};
    }
    __syncthreads();

    if (threadIdx.x < WARPGROUP) {
        // Chunk q of every step, of several pixels.
        int q = threadIdx.x % 8, row = threadIdx.x / 8, c = q * V, tap_u = 0, tap_v = 0;
        int at = row * ROW + (q ^ row % 8) * 16;
        Pixel own[COPIES];
#pragma unroll
        for (int l = 0; l < COPIES; ++l) own[l] = table[row + l * ROWS];
        long long piece = (long long)(group * (gridDim.z / G) + blockIdx.z / G) * gridDim.y;
        const T* weights = packed + (piece + blockIdx.y) * most_steps * BN * BK;
        produce(pipeline, steps, [&](int step, int stage) {
            unsigned char* to = shared + stage * STAGE;
            if (threadIdx.x == 0) {
                arrive_expecting(pipeline.full + stage, BN * ROW);
                copy_bulk(to + BM * ROW, weights + (long long)step * BN * BK, BN * ROW,
                          pipeline.full + stage);
            }
            while (c >= S && tap_u < ah.taps) {
                c -= S;
                if (++tap_v == aw.taps) tap_v = 0, ++tap_u;
            }
            int dy = tap_u * ah.reach, dx = tap_v * aw.reach;
#pragma unroll
            for (int l = 0; l < COPIES; ++l) {
                int h = own[l].top + dy, w = own[l].left + dx;
                bool inside =
                    tap_u < ah.taps && h >= 0 && h < ah.read && w >= 0 && w < aw.read;
                long long at_pixel = (long long)h * aw.read + w;
                long long from = inside ? own[l].base + at_pixel * G * S + c : 0;
                copy_async_16(to + at + l * ROWS * ROW, source + from, inside);
            }
            c += BK;
        });
        return;
    }

    int lane = threadIdx.x % 32, warp = threadIdx.x / 32 - WARPGROUP / 32, first = warp / 4 * 64;
    float sums[BN / 2] = {};
    if constexpr (sizeof(T) == 2) {
        unsigned long long a = describe(shared + first * ROW, 16, 8 * ROW);
        unsigned long long b = describe(shared + BM * ROW, 16, 8 * ROW);
        consume<TURNS>(pipeline, steps, sums, [&](int, int stage) {
            fence_registers();
#pragma unroll
            for (int k = 0; k < ROW; k += 32)
                multiply_later<T, false>(sums, a + (stage * STAGE + k) / 16,
                                         b + (stage * STAGE + k) / 16);
        });
    } else {
        // Rounded fragments of two steps in turn: the last step's are in use.
        unsigned a[2][4][4];
        unsigned long long b = describe(shared + BM * ROW, 16, 8 * ROW);
        int row = first + warp % 4 * 16 + lane % 16;
        auto multiply = [&](unsigned (&now)[4][4], int stage) {
#pragma unroll
            for (int k = 0; k < 4; ++k) {
                int q = 2 * k + lane / 16;
                load_matrices(now[k], shared + stage * STAGE + row * ROW + (q ^ row % 8) * 16);
                for (int i = 0; i < 4; ++i) now[k][i] = to_tf32(__uint_as_float(now[k][i]));
            }
            fence_registers(now);
#pragma unroll
            for (int k = 0; k < 4; ++k)
                multiply_later(sums, now[k], b + (stage * STAGE + k * 32) / 16);
        };
        consume<TURNS>(pipeline, steps, sums,
                       [&](int turn, int stage) { multiply(a[turn], stage); });
    }

    meet(1, CONSUMERS);  // nobody multiplies any more: the stages are free
    unsigned char* out = shared + warp * 16 * PITCH;
#pragma unroll
    for (int i = 0; i < BN / 2; i += 2) {
        Some<T, 2> pair;
        narrow(pair.at[0], sums[i]);
        narrow(pair.at[1], sums[i + 1]);
        int row = lane / 4 + i % 4 / 2 * 8, column = i / 4 * 8 + lane % 4 * 2;
        store<2>(reinterpret_cast<T*>(out + row * PITCH) + column, pair);
    }
    __syncwarp();
    for (int i = lane; i < 16 * BN / V; i += 32) {
        int row = i / (BN / V), d = d0 + i % (BN / V) * V;
        long long to = table[warp * 16 + row].to;
        if (to < 0 || d >= D) continue;
        auto made = reinterpret_cast<const T*>(out + row * PITCH) + (d - d0);
        if (D % V == 0)
            store<V>(result + to + d, load<V>(made));
        else
            for (int v = 0; v < V && d + v < D; ++v) result[to + d + v] = made[v];
    }
}
