// Convolution as a matrix product whose columns are never written: implicit GEMM in registers.
//
//     gather       Y[m, o] = sum_k X[m, k] * W[o, k]      m = (n,i,j), k = (u,v,c)
//     grad_weight  dW[o, k] = sum_m dY[m, o] * X[m, k]
//
// X[m, k] is read from the image where im2col would have copied it from. The forward pass is a
// gather from x with the weight (O, KH, KW, C/G); the input gradient is the same gather from gy with
// the weight turned to (C, KH, KW, O/G), once for every residue of the stride (geometry.cuh).
//
// A block of THREADS makes a BM x BN piece; a thread TM x TN of it, in registers. Per step, BK slices
// of both factors go through shared memory, k first, so that a thread reads TM + TN numbers for
// TM * TN multiply-adds, four side by side. The next slices are fetched into registers while these
// are used, and shared memory has two halves, so that one barrier a step is enough. Where there are
// too few pieces to fill the device, the sum over k is split over blocks too: parts (splits,
// result), which sum_parts.cu adds up in order.
// PACKED: 16 bytes of channels at once; it needs C/G (or O/G) in whole packs.
#include "types.cuh"
#include "geometry.cuh"

using A = Sum<T>;
constexpr int V = PACKED ? PACK<T> : 1, BK = 8;
constexpr int THREADS = (BM / TM) * (BN / TN), PAD = 4;
constexpr int LOADS_M = (BM * BK / V + THREADS - 1) / THREADS;
constexpr int LOADS_N = (BN * BK / V + THREADS - 1) / THREADS;
static_assert(TM % 4 == 0 && TN % 4 == 0, "a thread's piece is made of squares of four");

// Numbers that one instruction reads of shared memory, and writes of the result's fours.
constexpr int Q = 16 / sizeof(A);
constexpr int QT = PACK<T> < 4 ? PACK<T> : 4;

struct __align__(16) Tiles {
    A m[2][BK][BM + PAD], n[2][BK][BN + PAD];
};

// Row t of a thread's T4 * 4 rows among B: groups of four, spread so that threads read side by side.
__device__ __forceinline__ constexpr int spread(int thread, int t, int B, int piece) {
    return t / 4 * (B / (piece / 4)) + thread * 4 + t % 4;
}

__device__ __forceinline__ void multiply(const Tiles& tiles, int half, int tm, int tn,
                                         A (&sums)[TM][TN]) {
#pragma unroll
    for (int k = 0; k < BK; ++k) {
        Some<A, Q> left[TM / Q], right[TN / Q];
#pragma unroll
        for (int i = 0; i < TM; i += Q)
            left[i / Q] = load<Q>(&tiles.m[half][k][spread(tm, i, BM, TM)]);
#pragma unroll
        for (int j = 0; j < TN; j += Q)
            right[j / Q] = load<Q>(&tiles.n[half][k][spread(tn, j, BN, TN)]);
#pragma unroll
        for (int i = 0; i < TM; ++i)
#pragma unroll
            for (int j = 0; j < TN; ++j)
                sums[i][j] += left[i / Q].at[i % Q] * right[j / Q].at[j % Q];
    }
}

// source (N, ah.read, aw.read, G*S), weight (G*D, KH, KW, S), result (N, ah.made, aw.made, G*D).
// grid: (pieces of pixels and of D, G * residues, splits). Pieces of the same pixels follow each
// other, so that these are read from memory once. parts: null if the sum is not split.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
gather(const T* __restrict__ source, const T* __restrict__ weight, const T* __restrict__ bias,
       T* __restrict__ result, A* __restrict__ parts, int k_per_part, int gradient, GEOMETRY) {
    __shared__ Tiles tiles;
    int S = (gradient ? O : C) / G, D = (gradient ? C : O) / G;
    int residue = blockIdx.y / G, group = blockIdx.y % G, across = (D + BN - 1) / BN;
    Axis ah = gradient ? gradient_axis(H, OH, KH, sh, ph, dh, residue / sw)
                       : forward_axis(H, OH, KH, sh, ph, dh);
    Axis aw = gradient ? gradient_axis(W, OW, KW, sw, pw, dw, residue % sw)
                       : forward_axis(W, OW, KW, sw, pw, dw);
    long long pixels = (long long)N * ah.count * aw.count,
              m0 = (long long)(blockIdx.x / across) * BM;
    int d0 = blockIdx.x % across * BN, K = ah.taps * aw.taps * S, k0 = blockIdx.z * k_per_part;
    if (m0 >= pixels) return;
    int k_end = k0 + k_per_part < K ? k0 + k_per_part : K;

    // What this thread fetches: V channels at the same k of several pixels and weight rows.
    constexpr int PER_ROW = BK / V;
    int k_own = threadIdx.x % PER_ROW * V, row_own = threadIdx.x / PER_ROW;
    long long base[LOADS_M];
    int top[LOADS_M], left[LOADS_M];
#pragma unroll
    for (int l = 0; l < LOADS_M; ++l) {
        long long m = m0 + row_own + l * (THREADS / PER_ROW);
        bool inside = m < pixels && row_own + l * (THREADS / PER_ROW) < BM;
        int j = m % aw.count, i = m / aw.count % ah.count;
        long long n = m / aw.count / ah.count;
        base[l] = n * ah.read * aw.read * G * S + group * S;
        top[l] = inside ? i * ah.step + ah.origin : -(1 << 30);  // outside of every image
        left[l] = j * aw.step + aw.origin;
    }

    Some<T, V> from_image[LOADS_M], from_weight[LOADS_N];
    // The tap and channel of k, kept up as k grows.
    int c = k0 + k_own, tap_v = 0, tap_u = 0;
    auto settle = [&] {
        while (c >= S && tap_u < ah.taps) {
            c -= S;
            if (++tap_v == aw.taps) tap_v = 0, ++tap_u;
        }
    };
    auto fetch = [&] {
        bool any = tap_u < ah.taps && k0 < K;
        int dy = tap_u * ah.reach, dx = tap_v * aw.reach;
#pragma unroll
        for (int l = 0; l < LOADS_M; ++l) {
            int h = top[l] + dy, w = left[l] + dx;
            bool inside = any && h >= 0 && h < ah.read && w >= 0 && w < aw.read;
            if (inside)
                from_image[l] =
                    load<V>(source + base[l] + ((long long)h * aw.read + w) * G * S + c);
            else
                for (int v = 0; v < V; ++v) narrow(from_image[l].at[v], A(0));
        }
        int tap = (ah.tap_first + tap_u * ah.tap_step) * KW + aw.tap_first + tap_v * aw.tap_step;
#pragma unroll
        for (int l = 0; l < LOADS_N; ++l) {
            int row = row_own + l * (THREADS / PER_ROW), d = d0 + row;
            if (any && row < BN && d < D)
                from_weight[l] =
                    load<V>(weight + ((group * D + d) * (long long)(KH * KW) + tap) * S + c);
            else
                for (int v = 0; v < V; ++v) narrow(from_weight[l].at[v], A(0));
        }
    };
    auto put = [&](int half) {
#pragma unroll
        for (int l = 0; l < LOADS_M; ++l) {
            int row = row_own + l * (THREADS / PER_ROW);
            if (BM * PER_ROW % THREADS == 0 || row < BM)
                for (int v = 0; v < V; ++v)
                    tiles.m[half][k_own + v][row] = wide(from_image[l].at[v]);
        }
#pragma unroll
        for (int l = 0; l < LOADS_N; ++l) {
            int row = row_own + l * (THREADS / PER_ROW);
            if (BN * PER_ROW % THREADS == 0 || row < BN)
                for (int v = 0; v < V; ++v)
                    tiles.n[half][k_own + v][row] = wide(from_weight[l].at[v]);
        }
    };

    int tn = threadIdx.x % (BN / TN), tm = threadIdx.x / (BN / TN);
    A sums[TM][TN] = {};
    settle();
    fetch();
    put(0);
    __syncthreads();
    for (int k = k0, half = 0; k < k_end; k += BK, half ^= 1) {
        bool more = k + BK < k_end;
        if (more) {
            c += BK;
            settle();
            fetch();
        }
        multiply(tiles, half, tm, tn, sums);
        if (more) put(half ^ 1);
        __syncthreads();
    }

#pragma unroll
    for (int i = 0; i < TM; ++i) {
        long long m = m0 + spread(tm, i, BM, TM);
        if (m >= pixels) continue;
        int w = m % aw.count * aw.place + aw.first,
            h = m / aw.count % ah.count * ah.place + ah.first;
        long long n = m / aw.count / ah.count;
        long long at = ((n * ah.made + h) * aw.made + w) * G * D + group * D;
        A* part =
            parts ? parts + (long long)blockIdx.z * N * ah.made * aw.made * G * D + at : nullptr;
#pragma unroll
        for (int j = 0; j < TN; j += QT) {
            int d = d0 + spread(tn, j, BN, TN);
            if (part) {
                for (int q = 0; q < QT; ++q)
                    if (d + q < D) part[d + q] = sums[i][j + q];
                continue;
            }
            Some<T, QT> values;
#pragma unroll
            for (int q = 0; q < QT; ++q) {
                bool add = bias && d + q < D;
                A sum = sums[i][j + q];
                narrow(values.at[q], add ? sum + wide(bias[group * D + d + q]) : sum);
            }
            if (D % QT == 0 && d < D)
                store<QT>(result + at + d, values);
            else
                for (int q = 0; q < QT; ++q)
                    if (d + q < D) result[at + d + q] = values.at[q];
        }
    }
}

// parts (splits, O, KH*KW*C/G): the sum over each part of the pixels; grid (pieces of O/G, pieces of
// K, G * splits). Rows of the piece are output channels, columns are (u,v,c).
extern "C" __global__ void __launch_bounds__(THREADS, 1)
grad_weight(const T* __restrict__ x, const T* __restrict__ gy, A* __restrict__ parts,
            long long pixels_per_part, GEOMETRY) {
    __shared__ Tiles tiles;
    int S = C / G, D = O / G, K = KH * KW * S;
    int part = blockIdx.z / G, group = blockIdx.z % G;
    int o0 = blockIdx.x * BM, k0 = blockIdx.y * BN;
    long long pixels = (long long)N * OH * OW, begin = part * pixels_per_part;
    long long end = begin + pixels_per_part < pixels ? begin + pixels_per_part : pixels;

    // What this thread fetches: V output channels, and V channels at one tap, of several pixels.
    constexpr int ROW_M = BM / V, ROW_N = BN / V;
    Some<T, V> from_grad[LOADS_M], from_image[LOADS_N];
    int o[LOADS_M], row_m[LOADS_M], row_n[LOADS_N], top[LOADS_N], left[LOADS_N], c[LOADS_N];
#pragma unroll
    for (int l = 0; l < LOADS_M; ++l) {
        int at = threadIdx.x + l * THREADS;
        row_m[l] = at / ROW_M;
        o[l] = o0 + at % ROW_M * V;
    }
#pragma unroll
    for (int l = 0; l < LOADS_N; ++l) {
        int at = threadIdx.x + l * THREADS, k = k0 + at % ROW_N * V, tap = k / S;
        row_n[l] = at / ROW_N;
        c[l] = k % S;
        top[l] = k < K ? tap / KW * dh - ph : -(1 << 30);  // outside of every image
        left[l] = tap % KW * dw - pw;
    }
    auto fetch = [&](long long p) {
#pragma unroll
        for (int l = 0; l < LOADS_M; ++l) {
            long long m = p + row_m[l];
            if (row_m[l] < BK && m < end && o[l] < D)
                from_grad[l] = load<V>(gy + m * O + group * D + o[l]);
            else
                for (int v = 0; v < V; ++v) narrow(from_grad[l].at[v], A(0));
        }
#pragma unroll
        for (int l = 0; l < LOADS_N; ++l) {
            long long m = p + row_n[l];
            int j = m % OW, i = m / OW % OH, h = i * sh + top[l], w = j * sw + left[l];
            bool inside = row_n[l] < BK && m < end && h >= 0 && h < H && w >= 0 && w < W;
            if (inside)
                from_image[l] =
                    load<V>(x + ((m / OW / OH * H + h) * W + w) * C + group * S + c[l]);
            else
                for (int v = 0; v < V; ++v) narrow(from_image[l].at[v], A(0));
        }
    };
    auto put = [&](int half) {
#pragma unroll
        for (int l = 0; l < LOADS_M; ++l)
            if (row_m[l] < BK)
                for (int v = 0; v < V; ++v)
                    tiles.m[half][row_m[l]][o[l] - o0 + v] = wide(from_grad[l].at[v]);
#pragma unroll
        for (int l = 0; l < LOADS_N; ++l)
            if (row_n[l] < BK)
                for (int v = 0; v < V; ++v)
                    tiles.n[half][row_n[l]][(threadIdx.x + l * THREADS) % ROW_N * V + v] =
                        wide(from_image[l].at[v]);
    };

    int tn = threadIdx.x % (BN / TN), tm = threadIdx.x / (BN / TN);
    A sums[TM][TN] = {};
    fetch(begin);
    put(0);
    __syncthreads();
    int half = 0;
    for (long long p = begin; p < end; p += BK, half ^= 1) {
        bool more = p + BK < end;
        if (more) fetch(p + BK);
        multiply(tiles, half, tm, tn, sums);
        if (more) put(half ^ 1);
        __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < TM; ++i) {
        int row = o0 + spread(tm, i, BM, TM);
        if (row >= D) continue;
        A* to = parts + ((long long)part * O + group * D + row) * K;
#pragma unroll
        for (int j = 0; j < TN; ++j) {
            int k = k0 + spread(tn, j, BN, TN);
            if (k < K) to[k] = sums[i][j];
        }
    }
}
