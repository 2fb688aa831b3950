// Convolution by its definition, for every geometry: the plainest version, a thread per result.
//
//     y[n,i,j,o]      = sum_{u,v,c} x[n, i*sh + u*dh - ph, j*sw + v*dw - pw, c] * w[o,u,v,c]
//     gx[n,h,w,c]     = sum_{u,v,o} gy[n,i,j,o] * w[o,u,v,c]      (i, j) with h, w as above
//     gw[o,u,v,c]     = sum_{n,i,j} gy[n,i,j,o] * x[n, i*sh + u*dh - ph, j*sw + v*dw - pw, c]
//
// Channels last, O of G groups each seeing C/G input channels. Neighbouring threads make
// neighbouring channels, so that their reads meet in the same memory lines. It serves grouped and
// depthwise convolutions, where there are few products for each number read. The weight gradient
// is a long sum over pixels, so it is split into parts, which are added up in order afterwards.
#include "types.cuh"
#include "geometry.cuh"

using A = Sum<T>;

extern "C" __global__ void __launch_bounds__(256, 2)
direct_forward(const T* __restrict__ x, const T* __restrict__ weight, T* __restrict__ y, GEOMETRY) {
    long long total = (long long)N * OH * OW * O, step = (long long)gridDim.x * blockDim.x;
    int CG = C / G, OG = O / G;
    for (long long k = (long long)blockIdx.x * blockDim.x + threadIdx.x; k < total; k += step) {
        int o = k % O, j = k / O % OW, i = k / O / OW % OH;
        long long n = k / O / OW / OH;
        A sum = 0;
        for (int u = 0; u < KH; ++u)
            for (int v = 0; v < KW; ++v) {
                int h = i * sh + u * dh - ph, w = j * sw + v * dw - pw;
                if (h < 0 || h >= H || w < 0 || w >= W) continue;
                const T* from = x + ((n * H + h) * W + w) * C + o / OG * CG;
                const T* by = weight + (((long long)o * KH + u) * KW + v) * CG;
                for (int c = 0; c < CG; ++c) sum += wide(from[c]) * wide(by[c]);
            }
        narrow(y[k], sum);
    }
}

extern "C" __global__ void __launch_bounds__(256, 2)
direct_grad_input(const T* __restrict__ gy, const T* __restrict__ weight, T* __restrict__ gx,
                  GEOMETRY) {
    long long total = (long long)N * H * W * C, step = (long long)gridDim.x * blockDim.x;
    int CG = C / G, OG = O / G;
    for (long long k = (long long)blockIdx.x * blockDim.x + threadIdx.x; k < total; k += step) {
        int c = k % C, w = k / C % W, h = k / C / W % H, group = c / CG;
        long long n = k / C / W / H;
        A sum = 0;
        for (int u = 0; u < KH; ++u) {
            int top = h + ph - u * dh;
            if (top < 0 || top % sh || top / sh >= OH) continue;
            for (int v = 0; v < KW; ++v) {
                int left = w + pw - v * dw;
                if (left < 0 || left % sw || left / sw >= OW) continue;
                const T* from = gy + ((n * OH + top / sh) * OW + left / sw) * O + group * OG;
                long long by = (((long long)group * OG * KH + u) * KW + v) * CG + c % CG;
                for (int o = 0; o < OG; ++o)
                    sum += wide(from[o]) * wide(weight[by + (long long)o * KH * KW * CG]);
            }
        }
        narrow(gx[k], sum);
    }
}

// parts (gridDim.y, O, KH, KW, C/G): the sums over parts of the pixels.
extern "C" __global__ void __launch_bounds__(256, 2)
direct_grad_weight(const T* __restrict__ x, const T* __restrict__ gy, A* __restrict__ parts,
                   long long pixels_per_part, GEOMETRY) {
    int CG = C / G, OG = O / G;
    long long k = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    long long size = (long long)O * KH * KW * CG;
    if (k >= size) return;
    int c = k % CG, v = k / CG % KW, u = k / CG / KW % KH, o = k / CG / KW / KH;
    long long begin = blockIdx.y * pixels_per_part, pixels = (long long)N * OH * OW;
    long long end = min(begin + pixels_per_part, pixels);
    A sum = 0;
    for (long long p = begin; p < end; ++p) {
        int j = p % OW, i = p / OW % OH, h = i * sh + u * dh - ph, w = j * sw + v * dw - pw;
        if (h < 0 || h >= H || w < 0 || w >= W) continue;
        long long from = ((p / OW / OH * H + h) * W + w) * C + o / OG * CG + c;
        sum += wide(gy[p * O + o]) * wide(x[from]);
    }
    parts[blockIdx.y * size + k] = sum;
}
