// The weight gradient of few channels: a window of the image and gy in shared memory, the whole
// gradient in registers.
//
//     dW[o, k] = sum_m dY[m, o] * X[m, k]      m = (n,i,j), k = (u,v,c)
//
// A block holds all O of a piece of K, a thread 8 x 8: `across` threads for k, O/8 for o. What
// threads are left form more groups, each of which takes other pixels; at the end they add up their
// sums in shared memory, one group after another. A block takes windows of `rows` x `columns`
// outputs, every gridDim.x-th, and writes its sum, parts (gridDim.x, O, K), which sum_parts.cu adds
// up in order.
#include "types.cuh"
#include "window.cuh"

constexpr int TO = 32 / sizeof(A), TK = 8;   // 64 registers of sums in either type
constexpr int VG = PACKED_GRADS ? VA : 1;  // numbers of gy read at once

// grid: (blocks, pieces of K); parts (gridDim.x, O, K)
extern "C" __global__ void __launch_bounds__(384)
window_grad_weight(const T* __restrict__ x, const T* __restrict__ gy, A* __restrict__ parts, int N,
                   int C, int H, int W, int O, int OH, int OW, int KH, int KW, int sh, int sw,
                   int ph, int pw, int dh, int dw, int rows, int columns, int across, int groups) {
    DYNAMIC_SHARED(A, grads);  // [pixel][O in whole TOs]; then the window; at last, the sums
    int OT = (O + TO - 1) / TO, K = KH * KW * C, k0 = blockIdx.y * across * TK;
    A* window = grads + rows * columns * OT * TO;
    int high = (rows - 1) * sh + (KH - 1) * dh + 1, broad = (columns - 1) * sw + (KW - 1) * dw + 1;
    int step = pixel_step(C);
    int tk = threadIdx.x % across, to = threadIdx.x / across % OT;
    int group = threadIdx.x / across / OT;

    int from[TK];  // where k lies in the window
#pragma unroll
    for (int i = 0; i < TK; ++i) {
        int k = k0 + tk + i * across, tap = k / C;
        from[i] = k < K ? (tap / KW * dh * broad + tap % KW * dw) * step + k % C : 0;
    }
    A sums[TO][TK] = {};
    int along = (OW + columns - 1) / columns, down = (OH + rows - 1) / rows;
    long long windows = (long long)N * down * along;
    for (long long at = blockIdx.x; at < windows; at += gridDim.x) {
        int left = at % along * columns, top = at / along % down * rows, n = at / along / down;
        // Only real pixels: a zero for one beyond the border would turn an infinite x into NaN.
        int here = OW - left < columns ? OW - left : columns;
        int pixels = (OH - top < rows ? OH - top : rows) * here;
        __syncthreads();
        for (int item = threadIdx.x; item < pixels * OT * TO / VG; item += blockDim.x) {
            int o = item % (OT * TO / VG) * VG, p = item / (OT * TO / VG);
            long long pixel = ((long long)n * OH + top + p / here) * OW + left + p % here;
            Some<T, VG> given = {};
            if (o < O) given = load<VG>(gy + pixel * O + o);
#pragma unroll
            for (int v = 0; v < VG; ++v) grads[item * VG + v] = o < O ? wide(given.at[v]) : A(0);
        }
        load_window(x, window, n, top * sh - ph, left * sw - pw, high, broad, H, W, C);
        __syncthreads();
        if (group >= groups) continue;
        int i = group / here, j = group % here;
        for (int p = group; p < pixels; p += groups) {
            const A* image = window + (i * sh * broad + j * sw) * step;
            Some<A, VA> dy[TO / VA];
#pragma unroll
            for (int o = 0; o < TO / VA; ++o)
                dy[o] = load<VA>(grads + (p * OT + to) * TO + o * VA);
#pragma unroll
            for (int k = 0; k < TK; ++k) {
                A value = image[from[k]];
#pragma unroll
                for (int o = 0; o < TO; ++o) sums[o][k] += dy[o / VA].at[o % VA] * value;
            }
            for (j += groups; j >= here; j -= here) ++i;
        }
    }

    // grads is now [o][k of this piece]: the groups' sums, in their order.
    int length = across * TK;
    for (int g = 0; g < groups; ++g) {
        __syncthreads();
        if (g != group) continue;
#pragma unroll
        for (int o = 0; o < TO; ++o)
#pragma unroll
            for (int k = 0; k < TK; ++k) {
                A* sum = grads + (to * TO + o) * length + tk + k * across;
                *sum = g ? *sum + sums[o][k] : sums[o][k];
            }
    }
    __syncthreads();
    A* result = parts + (long long)blockIdx.x * O * K;
    for (int item = threadIdx.x; item < O * length; item += blockDim.x) {
        int k = k0 + item % length;
        if (k < K) result[(long long)(item / length) * K + k] = grads[item];
    }
}
