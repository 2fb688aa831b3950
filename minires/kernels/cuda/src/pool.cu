// Pooling of channels-last images: maximum, average, average to a given size, and their gradients.
//
//     y[n,i,j,c] = max or mean over (u,v) of x[n, i*sh + u*dh - ph, j*sw + v*dw - pw, c]
//
// The maximum keeps its place k = u*KW + v, the first on ties, in PLACE_BYTES (one for windows up to
// 256 pixels: a quarter of what an int moves); a NaN is the maximum. Gradients are
// gathered: each input pixel adds up, in a fixed order, what the windows that it lies in send it.
// No atomics, and every input is written once.
//
// Bound by memory. A thread makes V neighbouring channels (16 bytes if PACKED is 1, or one) of one
// output; grid (columns and channels, rows, images), each thread taking every gridDim.z-th image.
#include "types.cuh"

constexpr int V = PACKED ? PACK<T> : 1;
using A = Sum<T>;

template <int BYTES>
struct PlaceOf {
    using type = int;
};
template <>
struct PlaceOf<1> {
    using type = unsigned char;
};
using Place = PlaceOf<PLACE_BYTES>::type;
constexpr int VP = V * PLACE_BYTES > 16 ? 16 / PLACE_BYTES : V;  // places that are moved at once

__device__ __forceinline__ Some<Place, V> load_places(const Place* from) {
    Some<Place, V> places;
#pragma unroll
    for (int k = 0; k < V; k += VP) {
        Some<Place, VP> some = load<VP>(from + k);
#pragma unroll
        for (int q = 0; q < VP; ++q) places.at[k + q] = some.at[q];
    }
    return places;
}

#define WINDOWS                                                                           \
    int N, int C, int H, int W, int OH, int OW, int KH, int KW, int sh, int sw, int ph,   \
        int pw, int dh, int dw, int count_padding

// Which column and channels of a row of `width` pixels this thread makes; false if none.
__device__ __forceinline__ bool own(int width, int C, int& column, int& channel) {
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x, packs = C / V;
    column = i / packs;
    channel = i % packs * V;
    return column < width;
}

// The outputs along one axis whose windows hold input position h at offset u; -1 if none does.
__device__ __forceinline__ int window_at(int h, int u, int out, int stride, int padding,
                                         int dilation) {
    int t = h + padding - u * dilation;
    return t >= 0 && t % stride == 0 && t / stride < out ? t / stride : -1;
}

__device__ __forceinline__ long long at(int n, int h, int w, int c, int H, int W, int C) {
    return (((long long)n * H + h) * W + w) * C + c;
}

// How many positions of the window at i are counted, along one axis.
__device__ __forceinline__ int counted(int i, int K, int stride, int padding, int size, int all) {
    int start = i * stride - padding;
    return all ? K : min(start + K, size) - max(start, 0);
}

extern "C" __global__ void __launch_bounds__(256, 2)
max_pool(const T* __restrict__ x, T* __restrict__ y, Place* __restrict__ indices, WINDOWS) {
    int j, c;
    if (!own(OW, C, j, c)) return;
    int i = blockIdx.y, top = i * sh - ph, left = j * sw - pw;
    // A window of nothing but -infinity still points at a real pixel: the first one unpadded.
    int first_u = top < 0 ? (-top + dh - 1) / dh : 0, first_v = left < 0 ? (-left + dw - 1) / dw : 0;
    for (int n = blockIdx.z; n < N; n += gridDim.z) {
        A best[V];
        int places[V];
#pragma unroll
        for (int k = 0; k < V; ++k) {
            best[k] = -infinity();
            places[k] = first_u * KW + first_v;
        }
        for (int u = 0; u < KH; ++u)
            for (int v = 0; v < KW; ++v) {
                int h = top + u * dh, w = left + v * dw;
                if (h < 0 || h >= H || w < 0 || w >= W) continue;
                Some<T, V> values = load<V>(x + at(n, h, w, c, H, W, C));
#pragma unroll
                for (int k = 0; k < V; ++k) {
                    A value = wide(values.at[k]);
                    if (value > best[k] || (value != value && best[k] == best[k])) {
                        best[k] = value;
                        places[k] = u * KW + v;
                    }
                }
            }
        long long to = at(n, i, j, c, OH, OW, C);
        Some<T, V> result;
#pragma unroll
        for (int k = 0; k < V; ++k) narrow(result.at[k], best[k]);
        store<V>(y + to, result);
#pragma unroll
        for (int k = 0; k < V; k += VP) {
            Some<Place, VP> some;
#pragma unroll
            for (int q = 0; q < VP; ++q) some.at[q] = places[k + q];
            store<VP>(indices + to + k, some);
        }
    }
}

extern "C" __global__ void __launch_bounds__(256, 2)
max_pool_grad(const T* __restrict__ gy, const Place* __restrict__ indices, T* __restrict__ gx,
              WINDOWS) {
    int w, c;
    if (!own(W, C, w, c)) return;
    int h = blockIdx.y;
    for (int n = blockIdx.z; n < N; n += gridDim.z) {
        A sums[V] = {};
        for (int u = 0; u < KH; ++u) {
            int i = window_at(h, u, OH, sh, ph, dh);
            if (i < 0) continue;
            for (int v = 0; v < KW; ++v) {
                int j = window_at(w, v, OW, sw, pw, dw);
                if (j < 0) continue;
                long long from = at(n, i, j, c, OH, OW, C);
                Some<T, V> values = load<V>(gy + from);
                Some<Place, V> places = load_places(indices + from);
#pragma unroll
                for (int k = 0; k < V; ++k)
                    if (places.at[k] == u * KW + v) sums[k] += wide(values.at[k]);
            }
        }
        Some<T, V> result;
#pragma unroll
        for (int k = 0; k < V; ++k) narrow(result.at[k], sums[k]);
        store<V>(gx + at(n, h, w, c, H, W, C), result);
    }
}

// The inputs at the places of the maxima: the adjoint of max_pool_grad.
extern "C" __global__ void __launch_bounds__(256, 2)
max_pool_take(const T* __restrict__ x, const Place* __restrict__ indices, T* __restrict__ y,
              WINDOWS) {
    int j, c;
    if (!own(OW, C, j, c)) return;
    int i = blockIdx.y;
    for (int n = blockIdx.z; n < N; n += gridDim.z) {
        long long to = at(n, i, j, c, OH, OW, C);
        Some<T, V> result;
        Some<Place, V> places = load_places(indices + to);
#pragma unroll
        for (int k = 0; k < V; ++k) {
            int place = places.at[k];
            int h = i * sh - ph + place / KW * dh, w = j * sw - pw + place % KW * dw;
            bool inside = place >= 0 && h >= 0 && h < H && w >= 0 && w < W;
            narrow(result.at[k], inside ? wide(x[at(n, h, w, c + k, H, W, C)]) : A(0));
        }
        store<V>(y + to, result);
    }
}

extern "C" __global__ void __launch_bounds__(256, 2)
avg_pool(const T* __restrict__ x, T* __restrict__ y, WINDOWS) {
    int j, c;
    if (!own(OW, C, j, c)) return;
    int i = blockIdx.y;
    A share = A(1) / A(counted(i, KH, sh, ph, H, count_padding) *
                       counted(j, KW, sw, pw, W, count_padding));
    for (int n = blockIdx.z; n < N; n += gridDim.z) {
        A sums[V] = {};
        for (int u = 0; u < KH; ++u)
            for (int v = 0; v < KW; ++v) {
                int h = i * sh - ph + u * dh, w = j * sw - pw + v * dw;
                if (h < 0 || h >= H || w < 0 || w >= W) continue;
                Some<T, V> values = load<V>(x + at(n, h, w, c, H, W, C));
#pragma unroll
                for (int k = 0; k < V; ++k) sums[k] += wide(values.at[k]);
            }
        Some<T, V> result;
#pragma unroll
        for (int k = 0; k < V; ++k) narrow(result.at[k], sums[k] * share);
        store<V>(y + at(n, i, j, c, OH, OW, C), result);
    }
}

extern "C" __global__ void __launch_bounds__(256, 2)
avg_pool_grad(const T* __restrict__ gy, T* __restrict__ gx, WINDOWS) {
    int w, c;
    if (!own(W, C, w, c)) return;
    int h = blockIdx.y;
    for (int n = blockIdx.z; n < N; n += gridDim.z) {
        A sums[V] = {};
        for (int u = 0; u < KH; ++u) {
            int i = window_at(h, u, OH, sh, ph, dh);
            if (i < 0) continue;
            for (int v = 0; v < KW; ++v) {
                int j = window_at(w, v, OW, sw, pw, dw);
                if (j < 0) continue;
                A share = A(1) / A(counted(i, KH, sh, ph, H, count_padding) *
                                   counted(j, KW, sw, pw, W, count_padding));
                Some<T, V> values = load<V>(gy + at(n, i, j, c, OH, OW, C));
#pragma unroll
                for (int k = 0; k < V; ++k) sums[k] += wide(values.at[k]) * share;
            }
        }
        Some<T, V> result;
#pragma unroll
        for (int k = 0; k < V; ++k) narrow(result.at[k], sums[k]);
        store<V>(gx + at(n, h, w, c, H, W, C), result);
    }
}

// Window i of `out` over `size` positions: from floor(i*size/out) up to ceil((i+1)*size/out).
__device__ __forceinline__ int begins(int i, int size, int out) {
    return unsigned(i) * unsigned(size) / unsigned(out);
}
__device__ __forceinline__ int ends(int i, int size, int out) {
    return (unsigned(i + 1) * unsigned(size) + unsigned(out) - 1) / unsigned(out);
}

extern "C" __global__ void __launch_bounds__(256, 2)
adaptive_avg_pool(const T* __restrict__ x, T* __restrict__ y, int N, int C, int H, int W, int OH,
                  int OW) {
    int j, c;
    if (!own(OW, C, j, c)) return;
    int i = blockIdx.y;
    int top = begins(i, H, OH), bottom = ends(i, H, OH);
    int left = begins(j, W, OW), right = ends(j, W, OW);
    A share = A(1) / A((bottom - top) * (right - left));
    for (int n = blockIdx.z; n < N; n += gridDim.z) {
        A sums[V] = {};
        for (int h = top; h < bottom; ++h)
            for (int w = left; w < right; ++w) {
                Some<T, V> values = load<V>(x + at(n, h, w, c, H, W, C));
#pragma unroll
                for (int k = 0; k < V; ++k) sums[k] += wide(values.at[k]);
            }
        Some<T, V> result;
#pragma unroll
        for (int k = 0; k < V; ++k) narrow(result.at[k], sums[k] * share);
        store<V>(y + at(n, i, j, c, OH, OW, C), result);
    }
}

// The windows that hold h are a run: those from floor(h*OH/H) up to ceil((h+1)*OH/H).
extern "C" __global__ void __launch_bounds__(256, 2)
adaptive_avg_pool_grad(const T* __restrict__ gy, T* __restrict__ gx, int N, int C, int H, int W,
                       int OH, int OW) {
    int w, c;
    if (!own(W, C, w, c)) return;
    int h = blockIdx.y;
    for (int n = blockIdx.z; n < N; n += gridDim.z) {
        A sums[V] = {};
        for (int i = begins(h, OH, H); i < ends(h, OH, H); ++i)
            for (int j = begins(w, OW, W); j < ends(w, OW, W); ++j) {
                A share = A(1) / A((ends(i, H, OH) - begins(i, H, OH)) *
                                   (ends(j, W, OW) - begins(j, W, OW)));
                Some<T, V> values = load<V>(gy + at(n, i, j, c, OH, OW, C));
#pragma unroll
                for (int k = 0; k < V; ++k) sums[k] += wide(values.at[k]) * share;
            }
        Some<T, V> result;
#pragma unroll
        for (int k = 0; k < V; ++k) narrow(result.at[k], sums[k]);
        store<V>(gx + at(n, h, w, c, H, W, C), result);
    }
}
