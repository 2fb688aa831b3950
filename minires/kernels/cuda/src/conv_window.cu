// Convolution of few channels: the whole filter and a window of the image in shared memory.
//
//     y[n,i,j,d] = sum_(u,v,s) x[n, i*sh + u*dh - ph, j*sw + v*dw - pw, s] * w[d,u,v,s]
//
// A block makes `rows` rows of `columns` outputs, at most BM pixels, of BN channels: a thread
// TM x TN of them in registers. It keeps the filter of its channels, k = (u,v,s) first, and takes
// one window after another. Each pixel of the image is read from memory once (twice at the borders
// of windows) where an implicit product fetches it KH * KW times; and there is no index arithmetic
// per tap.
//
// The input gradient of stride 1 is the same of gy, with the weight (S, KH, KW, D) turned by 180
// degrees, and padding (K - 1) * dilation - padding. Stems have 3 channels, which are no whole pack
// (PACKED 0): without dilation a row of the window is then one run of KW * 3 numbers.
#include "types.cuh"
#include "window.cuh"

constexpr int HIGH = BM / TM, WIDE = BN / TN, THREADS = HIGH * WIDE, QUAD = 4;
constexpr int STORED = PACK<T> < QUAD ? PACK<T> : QUAD;  // channels written at once
static_assert(TN % QUAD == 0, "a thread's channels come in fours");

// filter [k][BN], zeros beyond D; neighbouring threads write neighbouring channels.
__device__ __forceinline__ void load_filter(const T* __restrict__ weight, A* filter, int d0, int D,
                                            int S, int KH, int KW, int turn) {
    int K = KH * KW * S, packs = turn ? K : K / V;
    for (int item = threadIdx.x; item < packs * BN; item += THREADS) {
        int d = item % BN, k = item / BN;
        if (turn) {
            int s = k % S, tap = KH * KW - 1 - k / S;
            filter[item] =
                d0 + d < D ? wide(weight[((long long)s * KH * KW + tap) * D + d0 + d]) : A(0);
        } else {
            Some<T, V> given = {};
            if (d0 + d < D) given = load<V>(weight + (long long)(d0 + d) * K + k * V);
#pragma unroll
            for (int v = 0; v < V; ++v)
                filter[(k * V + v) * BN + d] = d0 + d < D ? wide(given.at[v]) : A(0);
        }
    }
}

// source (N, H, W, S), result (N, OH, OW, D); grid: (blocks, pieces of D)
extern "C" __global__ void __launch_bounds__(THREADS, 1)
window(const T* __restrict__ source, const T* __restrict__ weight, T* __restrict__ result, int N,
       int S, int H, int W, int D, int OH, int OW, int KH, int KW, int sh, int sw, int ph, int pw,
       int dh, int dw, int turn, int rows, int columns) {
    DYNAMIC_SHARED(A, filter);
    A* window = filter + KH * KW * S * BN;
    int high = (rows - 1) * sh + (KH - 1) * dh + 1, broad = (columns - 1) * sw + (KW - 1) * dw + 1;
    int step = pixel_step(S), d0 = blockIdx.y * BN;
    int tn = threadIdx.x % WIDE, tm = threadIdx.x / WIDE;
    load_filter(weight, filter, d0, D, S, KH, KW, turn);

    int from[TM];  // where the window of each of this thread's pixels begins
#pragma unroll
    for (int i = 0; i < TM; ++i) {
        int m = tm + i * HIGH;
        from[i] = m < rows * columns ? (m / columns * sh * broad + m % columns * sw) * step : 0;
    }
    bool flat = !PACKED && dw == 1;
    int taps = flat ? 1 : KW, run = flat ? KW * S : S;

    int across = (OW + columns - 1) / columns, down = (OH + rows - 1) / rows;
    long long windows = (long long)N * down * across;
    for (long long at = blockIdx.x; at < windows; at += gridDim.x) {
        int left = at % across * columns, top = at / across % down * rows;
        long long n = at / across / down;
        __syncthreads();  // until the last window is done with
        load_window(source, window, n, top * sh - ph, left * sw - pw, high, broad, H, W, S);
        __syncthreads();
        A sums[TM][TN] = {};
        constexpr int UNROLLED = PACKED ? 1 : 4;  // nvcc expands no macros in a pragma
        const A* by = filter + tn * QUAD;
        for (int u = 0; u < KH; ++u)
            for (int v = 0; v < taps; ++v) {
                const A* tap = window + (u * dh * broad + v * dw) * step;
#pragma unroll UNROLLED
                for (int s = 0; s < run; s += V) {
                    Some<A, V> inputs[TM];
#pragma unroll
                    for (int i = 0; i < TM; ++i) inputs[i] = load<V>(tap + from[i] + s);
#pragma unroll
                    for (int k = 0; k < V; ++k, by += BN)
#pragma unroll
                        for (int j = 0; j < TN; j += VA) {
                            auto right = load<VA>(by + j / QUAD * WIDE * QUAD + j % QUAD);
#pragma unroll
                            for (int l = 0; l < VA; ++l)
#pragma unroll
                                for (int i = 0; i < TM; ++i)
                                    sums[i][j + l] += inputs[i].at[k] * right.at[l];
                        }
                }
            }
#pragma unroll
        for (int i = 0; i < TM; ++i) {
            int m = tm + i * HIGH, row = top + m / columns, column = left + m % columns;
            if (m >= rows * columns || row >= OH || column >= OW) continue;
            T* to = result + ((n * OH + row) * OW + column) * D;
#pragma unroll
            for (int j = 0; j < TN; j += STORED) {
                int d = d0 + j / QUAD * WIDE * QUAD + tn * QUAD + j % QUAD;
                Some<T, STORED> values;
#pragma unroll
                for (int k = 0; k < STORED; ++k) narrow(values.at[k], sums[i][j + k]);
                if (D % STORED == 0 && d < D)
                    store<STORED>(to + d, values);
                else
                    for (int k = 0; k < STORED; ++k)
                        if (d + k < D) to[d + k] = values.at[k];
            }
        }
    }
}
