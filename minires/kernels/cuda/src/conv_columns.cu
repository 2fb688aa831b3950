// Convolution as a matrix product, written out: im2col, a tiled product, and col2im.
//
// Row (n,i,j) of `columns` holds the window of output pixel (i,j), K = KH*KW*C numbers in the order
// (u,v,c). Then, with weight as a matrix (O, K),
//
//     Y = columns @ W^T        dW = dY^T @ columns        dcolumns = dY @ W
//
// and dx adds every entry of dcolumns back where it came from: col2im, the adjoint of im2col. This
// is the version to read. The columns take KH*KW times the memory of x, and moving them is what the
// implicit product (conv_implicit.cu) saves. Images `first` up to `first + images`; group `group`.
#include "types.cuh"
#include "geometry.cuh"

using A = Sum<T>;
constexpr int TILE = 16;

extern "C" __global__ void __launch_bounds__(256)
im2col(const T* __restrict__ x, T* __restrict__ columns, int first, int images, int group,
       GEOMETRY) {
    int CG = C / G;
    long long total = (long long)images * OH * OW * KH * KW * CG;
    long long step = (long long)gridDim.x * blockDim.x;
    for (long long k = (long long)blockIdx.x * blockDim.x + threadIdx.x; k < total; k += step) {
        int c = k % CG, v = k / CG % KW, u = k / CG / KW % KH;
        long long pixel = k / CG / KW / KH;
        int h = pixel / OW % OH * sh + u * dh - ph, w = pixel % OW * sw + v * dw - pw;
        long long n = first + pixel / OW / OH;
        bool inside = h >= 0 && h < H && w >= 0 && w < W;
        narrow(columns[k], inside ? wide(x[((n * H + h) * W + w) * C + group * CG + c]) : A(0));
    }
}

// Each input adds up, in a fixed order, the columns' entries that were read from it.
extern "C" __global__ void __launch_bounds__(256)
col2im(const T* __restrict__ columns, T* __restrict__ gx, int first, int images, int group,
       GEOMETRY) {
    int CG = C / G;
    long long total = (long long)images * H * W * CG;
    long long step = (long long)gridDim.x * blockDim.x;
    for (long long k = (long long)blockIdx.x * blockDim.x + threadIdx.x; k < total; k += step) {
        int c = k % CG, w = k / CG % W, h = k / CG / W % H;
        long long n = k / CG / W / H;
        A sum = 0;
        for (int u = 0; u < KH; ++u) {
            int top = h + ph - u * dh;
            if (top < 0 || top % sh || top / sh >= OH) continue;
            for (int v = 0; v < KW; ++v) {
                int left = w + pw - v * dw;
                if (left < 0 || left % sw || left / sw >= OW) continue;
                long long pixel = (n * OH + top / sh) * OW + left / sw;
                sum += wide(columns[((pixel * KH + u) * KW + v) * CG + c]);
            }
        }
        narrow(gx[(((first + n) * H + h) * W + w) * C + group * CG + c], sum);
    }
}

// c[i, j] = sum_k a[i, k] * b[k, j], + c if `add`; a step along each axis is given, so that any of
// them may be transposed. A block makes a TILE x TILE piece of c, a thread one number of it: each
// number read from memory is used TILE times out of shared memory.
extern "C" __global__ void __launch_bounds__(256)
product(const T* __restrict__ a, const T* __restrict__ b, T* __restrict__ c, long long I, int J,
        long long K, long long a_i, long long a_k, long long b_k, long long b_j, long long c_i,
        int add) {
    __shared__ A as[TILE][TILE + 1], bs[TILE][TILE + 1];
    int ti = threadIdx.x / TILE, tj = threadIdx.x % TILE;
    long long i = (long long)blockIdx.x * TILE + ti;
    int j = blockIdx.y * TILE + tj;
    A sum = 0;
    for (long long k = 0; k < K; k += TILE) {
        as[ti][tj] = i < I && k + tj < K ? wide(a[i * a_i + (k + tj) * a_k]) : A(0);
        bs[ti][tj] = k + ti < K && j < J ? wide(b[(k + ti) * b_k + j * b_j]) : A(0);
        __syncthreads();
#pragma unroll
        for (int t = 0; t < TILE; ++t) sum += as[ti][t] * bs[t][tj];
        __syncthreads();
    }
    if (i < I && j < J) narrow(c[i * c_i + j], add ? sum + wide(c[i * c_i + j]) : sum);
}
