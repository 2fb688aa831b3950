// Convolution on tensor cores: the implicit product of conv_implicit.cu, forward and input
// gradient, by warp-wide matrix instructions (mma.sync), in f16, bf16, or float rounded to tf32.
//
//     Y[m, o] = sum_k X[m, k] * W[o, k]      m = (n,i,j), k = (u,v,c); sums in float32
//
// A block makes a BM x BN piece, a warp a WM x WN part of it, from tiles of 16 x 8. Both factors
// have k along memory, so 16 bytes, a chunk, are neighbouring channels of one tap: copied from
// memory to shared memory without passing registers (cp.async), zeros where the window leaves the
// image. STAGES steps of 64 bytes of k are under way at once, so that the copies of one step have
// the time of several products. One matrix instruction takes 32 bytes of k of either type, so that
// everything but the instruction itself is the same for 16 and 32 bits.
//
// Shared memory: rows of 4 chunks, chunk q of row r at place q ^ (r / 2 % 4). The 8 rows that one
// matrix load reads at the same q lie in 8 different places of 128 bytes: no bank serves twice.
#include "types.cuh"
#include "geometry.cuh"
#include "ptx.cuh"

constexpr int WARPS_M = BM / WM, WARPS_N = BN / WN, THREADS = WARPS_M * WARPS_N * 32;
constexpr int V = PACK<T>, BK = 4 * V, ROW = 64, STAGE = (BM + BN) * ROW;
constexpr int ROWS = THREADS / 4;  // rows of chunks that the block copies at once
constexpr int COPIES_M = (BM + ROWS - 1) / ROWS, COPIES_N = (BN + ROWS - 1) / ROWS;
constexpr int TILES_M = WM / 16, TILES_N = WN / 8;
static_assert(WM % 16 == 0 && WN % 16 == 0, "a warp loads 16 rows of each factor at once");

__device__ __forceinline__ unsigned char* chunk(unsigned char* rows, int row, int q) {
    return rows + row * ROW + (q ^ (row / 2 % 4)) * 16;
}

__device__ __forceinline__ void round_all(unsigned (&values)[4]) {
    if (sizeof(T) == 4)
        for (int i = 0; i < 4; ++i) values[i] = to_tf32(__uint_as_float(values[i]));
}

extern "C" __global__ void __launch_bounds__(THREADS)
gather(const T* __restrict__ source, const T* __restrict__ weight, T* __restrict__ result,
       int gradient, GEOMETRY) {
    DYNAMIC_SHARED(unsigned char, shared);
    int S = (gradient ? O : C) / G, D = (gradient ? C : O) / G;
    int residue = blockIdx.z / G, group = blockIdx.z % G;
    Axis ah = gradient ? gradient_axis(H, OH, KH, sh, ph, dh, residue / sw)
                       : forward_axis(H, OH, KH, sh, ph, dh);
    Axis aw = gradient ? gradient_axis(W, OW, KW, sw, pw, dw, residue % sw)
                       : forward_axis(W, OW, KW, sw, pw, dw);
    long long pixels = (long long)N * ah.count * aw.count, m0 = (long long)blockIdx.x * BM;
    int d0 = blockIdx.y * BN, K = ah.taps * aw.taps * S, steps = (K + BK - 1) / BK;
    if (m0 >= pixels) return;

    // What this thread copies: chunk q_own of every step, of several pixels and weight rows.
    int q_own = threadIdx.x % 4, row_own = threadIdx.x / 4;
    long long base[COPIES_M];
    int top[COPIES_M], left[COPIES_M];
#pragma unroll
    for (int l = 0; l < COPIES_M; ++l) {
        long long m = m0 + row_own + l * ROWS;
        int j = m % aw.count, i = m / aw.count % ah.count;
        base[l] = m / aw.count / ah.count * ah.read * aw.read * G * S + group * S;
        top[l] = m < pixels ? i * ah.step + ah.origin : -(1 << 30);  // outside of every image
        left[l] = j * aw.step + aw.origin;
    }
    int c = q_own * V, tap_v = 0, tap_u = 0;
    auto settle = [&] {
        while (c >= S && tap_u < ah.taps) {
            c -= S;
            if (++tap_v == aw.taps) tap_v = 0, ++tap_u;
        }
    };
    auto copy = [&](int stage) {
        unsigned char* pixels_to = shared + stage * STAGE;
        unsigned char* weights_to = pixels_to + BM * ROW;
        settle();
        bool any = tap_u < ah.taps && K > 0;
        int dy = tap_u * ah.reach, dx = tap_v * aw.reach;
#pragma unroll
        for (int l = 0; l < COPIES_M; ++l) {
            int h = top[l] + dy, w = left[l] + dx, row = row_own + l * ROWS;
            bool inside = any && h >= 0 && h < ah.read && w >= 0 && w < aw.read;
            long long at = inside ? base[l] + ((long long)h * aw.read + w) * G * S + c : 0;
            if (BM % ROWS == 0 || row < BM)
                copy_async_16(chunk(pixels_to, row, q_own), source + at, inside);
        }
        int tap = (ah.tap_first + tap_u * ah.tap_step) * KW + aw.tap_first + tap_v * aw.tap_step;
#pragma unroll
        for (int l = 0; l < COPIES_N; ++l) {
            int row = row_own + l * ROWS, d = d0 + row;
            bool inside = any && d < D;
            long long at = inside ? ((group * D + d) * (long long)(KH * KW) + tap) * S + c : 0;
            if (BN % ROWS == 0 || row < BN)
                copy_async_16(chunk(weights_to, row, q_own), weight + at, inside);
        }
        c += BK;
    };

    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int warp_m = warp % WARPS_M * WM, warp_n = warp / WARPS_M * WN;
    float sums[TILES_M][TILES_N][4] = {};
#pragma unroll
    for (int s = 0; s < STAGES - 1; ++s) {
        if (s < steps) copy(s);
        commit_copies();
    }
    for (int k = 0; k < steps; ++k) {
        wait_copies<STAGES - 2>();
        __syncthreads();
        int ahead = k + STAGES - 1;
        if (ahead < steps) copy(ahead % STAGES);
        commit_copies();
        unsigned char* pixels_in = shared + k % STAGES * STAGE;
        unsigned char* weights_in = pixels_in + BM * ROW;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            // Matrices of 8 rows and 16 bytes, in the order that the instruction wants them.
            unsigned a[TILES_M][4], b[TILES_N / 2][4];
#pragma unroll
            for (int i = 0; i < TILES_M; ++i) {
                int row = warp_m + i * 16 + lane % 16;
                load_matrices(a[i], chunk(pixels_in, row, 2 * half + lane / 16));
                round_all(a[i]);
            }
#pragma unroll
            for (int j = 0; j < TILES_N / 2; ++j) {
                int row = warp_n + j * 16 + lane / 16 * 8 + lane % 8;
                load_matrices(b[j], chunk(weights_in, row, 2 * half + lane / 8 % 2));
                round_all(b[j]);
            }
#pragma unroll
            for (int i = 0; i < TILES_M; ++i)
#pragma unroll
                for (int j = 0; j < TILES_N; ++j) {
                    unsigned columns[2] = {b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]};
                    multiply_matrices<T>(sums[i][j], a[i], columns);
                }
        }
    }
    wait_copies<0>();

#pragma unroll
    for (int i = 0; i < TILES_M; ++i)
#pragma unroll
        for (int low = 0; low < 2; ++low) {
            long long m = m0 + warp_m + i * 16 + low * 8 + lane / 4;
            if (m >= pixels) continue;
            int w = m % aw.count * aw.place + aw.first;
            int h = m / aw.count % ah.count * ah.place + ah.first;
            long long n = m / aw.count / ah.count;
            T* to = result + ((n * ah.made + h) * aw.made + w) * G * D + group * D;
#pragma unroll
            for (int j = 0; j < TILES_N; ++j) {
                int d = d0 + warp_n + j * 8 + lane % 4 * 2;
                Some<T, 2> pair;
                narrow(pair.at[0], sums[i][j][2 * low]);
                narrow(pair.at[1], sums[i][j][2 * low + 1]);
                if (D % 2 == 0 && d < D)
                    store<2>(to + d, pair);
                else
                    for (int v = 0; v < 2; ++v)
                        if (d + v < D) to[d + v] = pair.at[v];
            }
        }
}
