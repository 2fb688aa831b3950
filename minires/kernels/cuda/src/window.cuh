// A window of an image in shared memory, as Sum<T>, with zeros outside of the image: what kernels
// for few channels read instead of memory, where each of its pixels is used KH * KW times.
#pragma once
#include "types.cuh"

using A = Sum<T>;
constexpr int VA = 16 / sizeof(A);    // numbers of arithmetic in 16 bytes
constexpr int V = PACKED ? VA : 1;  // channels read at once
constexpr int GAP = PACKED ? V : 0;  // between pixels, so that neighbours lie in other banks

// The numbers from one pixel to the next.
__device__ __forceinline__ int pixel_step(int C) { return C + GAP; }

// rows x columns pixels of image n, from row `top` and column `left` on, into `window`.
__device__ __forceinline__ void load_window(const T* __restrict__ image, A* window, int n, int top,
                                            int left, int rows, int columns, int H, int W, int C) {
    unsigned row_packs = columns * C / V, items = rows * row_packs;
#pragma unroll 4
    for (unsigned item = threadIdx.x; item < items; item += blockDim.x) {
        int r = item / row_packs, e = item % row_packs * V, h = top + r, at = left * C + e;
        Some<A, V> values = {};
        if (h >= 0 && h < H && at >= 0 && at < W * C) {
            Some<T, V> given = load<V>(image + ((long long)n * H + h) * W * C + at);
#pragma unroll
            for (int v = 0; v < V; ++v) values.at[v] = wide(given.at[v]);
        }
        store<V>(window + r * columns * pixel_step(C) + e + (GAP ? e / C * GAP : 0), values);
    }
}
