// Batch normalisation over rows: a row per pixel, a column per channel, m rows.
//
//     mu = 1/m sum_r x_r    s2 = 1/m sum_r (x_r - mu)^2    i = (s2 + eps)^(-1/2)
//     y  = gamma * (x - mu) * i + beta      (then + residual, then max(., 0), in the same pass)
//
//     dbeta = sum_r dy    dgamma = sum_r dy * xhat    xhat = (x - mu) * i
//     dx = gamma * i * (dy - dbeta/m - xhat * dgamma/m)
//
// Statistics in one pass. All values are taken relative to the channel's first one, x0, which is
// near the mean if the deviation is small; so mean 1e4 with deviation 1 loses no digits. A thread
// takes CHUNK rows into registers, finds their mean d and squared distance q exactly there, and
// joins them to what it has by the rule of Chan, Golub & LeVeque (1979): for counts a and b
//
//     mean = mean_a + (mean_b - mean_a) * b/(a+b)
//     M2   = M2_a + M2_b + (mean_b - mean_a)^2 * a*b/(a+b)
//
// Threads, then blocks, are joined in a fixed order: no atomics, the same bits every time.
//
// A thread owns V channels (16 bytes if PACKED is 1, or one) and walks down rows; grid (channel tiles, row parts),
// block (channels, rows). Everything is bound by memory: statistics read x once, the normalising
// pass reads x and writes y once. The first pass goes down the rows, the second one up: what the
// first has read last, the end of every part, is still in the cache of the device.
#include "types.cuh"

constexpr int CHUNK = 4;
constexpr int V = PACKED ? PACK<T> : 1;
using A = Sum<T>;

struct Moments {
    A count, mean, m2;
};

__device__ __forceinline__ Moments join(const Moments& a, const Moments& b) {
    A total = a.count + b.count;
    if (b.count == 0) return a;
    A delta = b.mean - a.mean, share = b.count / total;
    return {total, a.mean + delta * share, a.m2 + b.m2 + delta * delta * (a.count * share)};
}

struct Place {
    long long first, last, step, back;  // rows of this thread; its last one
    int channel;
    bool inside;
};

__device__ __forceinline__ Place place(long long rows, long long rows_per_part, int C) {
    Place p;
    long long begin = blockIdx.y * rows_per_part;
    p.first = begin + threadIdx.y;
    p.last = begin + rows_per_part < rows ? begin + rows_per_part : rows;
    p.step = blockDim.y;
    p.back = p.first + (p.last > p.first ? (p.last - 1 - p.first) / p.step * p.step : -p.step);
    p.channel = (blockIdx.x * blockDim.x + threadIdx.x) * V;
    p.inside = p.channel < C;
    return p;
}

// parts: (parts, 2, C), the mean less x0 and the squared distance from it, of each part of the rows
extern "C" __global__ void __launch_bounds__(256, 2)
moments(const T* __restrict__ x, A* __restrict__ parts, long long rows, long long rows_per_part,
        int C) {
    __shared__ A counts[256], means[256 * V], m2s[256 * V];
    Place p = place(rows, rows_per_part, C);
    Moments own[V] = {};
    if (p.inside) {
        Some<T, V> origin = load<V>(x + p.channel);
        for (long long r = p.first; r < p.last; r += p.step * CHUNK) {
            Some<T, V> values[CHUNK];
            A count = 0;
#pragma unroll
            for (int k = 0; k < CHUNK; ++k) {
                long long row = r + k * p.step;
                if (row < p.last) {
                    values[k] = load<V>(x + row * C + p.channel);
                    count += 1;
                }
            }
#pragma unroll
            for (int v = 0; v < V; ++v) {
                A x0 = wide(origin.at[v]), sum = 0, m2 = 0;
#pragma unroll
                for (int k = 0; k < CHUNK; ++k)
                    if (k < count) sum += wide(values[k].at[v]) - x0;
                A mean = sum / count;
#pragma unroll
                for (int k = 0; k < CHUNK; ++k)
                    if (k < count) {
                        A d = wide(values[k].at[v]) - x0 - mean;
                        m2 += d * d;
                    }
                own[v] = join(own[v], {count, mean, m2});
            }
        }
    }
    // Join the block's rows in shared memory, half of them at a time; counts follow from places.
    int at = (threadIdx.y * blockDim.x + threadIdx.x) * V;
    for (int v = 0; v < V; ++v) means[at + v] = own[v].mean, m2s[at + v] = own[v].m2;
    if (threadIdx.x == 0) counts[threadIdx.y] = own[0].count;
    for (int half = blockDim.y / 2; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.y < half) {
            int other = at + half * blockDim.x * V;
            A a = counts[threadIdx.y], b = counts[threadIdx.y + half];
            for (int v = 0; v < V; ++v) {
                Moments both = join({a, means[at + v], m2s[at + v]},
                                    {b, means[other + v], m2s[other + v]});
                means[at + v] = both.mean, m2s[at + v] = both.m2;
            }
        }
        __syncthreads();
        if (threadIdx.y < half && threadIdx.x == 0)
            counts[threadIdx.y] += counts[threadIdx.y + half];
    }
    if (threadIdx.y == 0 && p.inside)
        for (int v = 0; v < V; ++v) {
            parts[2 * blockIdx.y * (long long)C + p.channel + v] = means[at + v];
            parts[(2 * blockIdx.y + 1) * (long long)C + p.channel + v] = m2s[at + v];
        }
}

// Joins the parts, 8 threads a channel. centre: the mean less x0, which the normalising pass uses.
extern "C" __global__ void __launch_bounds__(256, 2)
finish_moments(const T* __restrict__ x, const A* __restrict__ parts, int part_count,
               long long rows, long long rows_per_part, int C, double eps, A* __restrict__ centre,
               A* __restrict__ mean, A* __restrict__ var, A* __restrict__ inv_std) {
    __shared__ Moments shared[8][32];
    int c = blockIdx.x * 32 + threadIdx.x;
    Moments own = {0, 0, 0};
    if (c < C)
        for (int i = threadIdx.y; i < part_count; i += 8) {
            long long left = rows - i * rows_per_part;
            A count = A(left < rows_per_part ? left : rows_per_part);
            own = join(own, {count, parts[2 * i * (long long)C + c],
                             parts[(2 * i + 1) * (long long)C + c]});
        }
    shared[threadIdx.y][threadIdx.x] = own;
    __syncthreads();
    if (threadIdx.y || c >= C) return;
    for (int k = 1; k < 8; ++k) own = join(own, shared[k][threadIdx.x]);
    A variance = own.m2 / A(rows);
    centre[c] = own.mean;
    mean[c] = wide(x[c]) + own.mean;
    var[c] = variance;
    inv_std[c] = A(1) / sqrt(variance + A(eps));
}

// y = gamma * ((x - origin) - centre) * inv + beta, + residual, then max(., 0) if relu is not 0.
// Null pointers: origin 0, gamma 1, beta 0, residual 0. spread is inv, or the variance if eps >= 0.
extern "C" __global__ void __launch_bounds__(256, 2)
normalise(const T* __restrict__ x, const T* __restrict__ origin, const A* __restrict__ centre,
          const A* __restrict__ spread, double eps, const A* __restrict__ gamma,
          const A* __restrict__ beta, const T* __restrict__ residual, int relu,
          T* __restrict__ y, long long rows, long long rows_per_part, int C) {
    Place p = place(rows, rows_per_part, C);
    if (!p.inside) return;
    A x0[V], middle[V], scale[V], shift[V];
#pragma unroll
    for (int v = 0; v < V; ++v) {
        int c = p.channel + v;
        A inv = eps < 0 ? spread[c] : A(1) / sqrt(spread[c] + A(eps));
        x0[v] = origin ? wide(origin[c]) : A(0);
        middle[v] = centre[c];
        scale[v] = gamma ? gamma[c] * inv : inv;
        shift[v] = beta ? beta[c] : A(0);
    }
    for (long long r = p.back; r >= p.first; r -= p.step) {
        long long i = r * C + p.channel;
        Some<T, V> values = load<V>(x + i), other, result;
        if (residual) other = load<V>(residual + i);
#pragma unroll
        for (int v = 0; v < V; ++v) {
            A value = (wide(values.at[v]) - x0[v] - middle[v]) * scale[v] + shift[v];
            if (residual) value += wide(other.at[v]);
            narrow(result.at[v], relu && value <= 0 ? A(0) : value);
        }
        store<V>(y + i, result);
    }
}

// What is behind the batch norm, of which gy is the upstream gradient: dy is gy where the ReLU's
// output is above 0. That is read, y, or computed again from x: gamma * xhat + beta.
enum Behind { NOTHING = 0, RELU_READ = 1, RELU_AGAIN = 2 };

__device__ __forceinline__ A masked(A gy, A x_centred, A scale, A shift, A y, int behind) {
    if (behind == NOTHING) return gy;
    return (behind == RELU_READ ? y : x_centred * scale + shift) > 0 ? gy : A(0);
}

// parts: (parts, 2, C), sums of dy and of dy * xhat. gresidual: null, or where dy goes: the gradient
// of what was added before the ReLU, which grad_input then reads in place of gy and y.
extern "C" __global__ void __launch_bounds__(256, 2)
grad_sums(const T* __restrict__ gy, const T* __restrict__ x, const T* __restrict__ y, int behind,
          const A* __restrict__ gamma, const A* __restrict__ beta, const A* __restrict__ mean,
          const A* __restrict__ inv_std, A* __restrict__ parts, T* __restrict__ gresidual,
          long long rows, long long rows_per_part, int C) {
    __shared__ A betas[256 * V], gammas[256 * V];
    Place p = place(rows, rows_per_part, C);
    A by_beta[V] = {}, by_gamma[V] = {};
    if (p.inside) {
        A middle[V], inv[V], scale[V], shift[V];
#pragma unroll
        for (int v = 0; v < V; ++v) {
            int c = p.channel + v;
            middle[v] = mean[c];
            inv[v] = inv_std[c];
            scale[v] = gamma ? gamma[c] * inv[v] : inv[v];
            shift[v] = beta ? beta[c] : A(0);
        }
        for (long long r = p.first; r < p.last; r += p.step) {
            long long i = r * C + p.channel;
            Some<T, V> dy = load<V>(gy + i), xs = load<V>(x + i), ys = xs;
            if (behind == RELU_READ) ys = load<V>(y + i);
#pragma unroll
            for (int v = 0; v < V; ++v) {
                A centred = wide(xs.at[v]) - middle[v];
                A d = masked(wide(dy.at[v]), centred, scale[v], shift[v], wide(ys.at[v]), behind);
                by_beta[v] += d;
                by_gamma[v] += d * (centred * inv[v]);
                narrow(dy.at[v], d);
            }
            if (gresidual) store<V>(gresidual + i, dy);
        }
    }
    int at = (threadIdx.y * blockDim.x + threadIdx.x) * V;
    for (int v = 0; v < V; ++v) betas[at + v] = by_beta[v], gammas[at + v] = by_gamma[v];
    for (int half = blockDim.y / 2; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.y < half)
            for (int v = 0; v < V; ++v) {
                betas[at + v] += betas[at + half * blockDim.x * V + v];
                gammas[at + v] += gammas[at + half * blockDim.x * V + v];
            }
    }
    if (threadIdx.y == 0 && p.inside)
        for (int v = 0; v < V; ++v) {
            parts[2 * blockIdx.y * (long long)C + p.channel + v] = betas[at + v];
            parts[(2 * blockIdx.y + 1) * (long long)C + p.channel + v] = gammas[at + v];
        }
}

extern "C" __global__ void __launch_bounds__(256, 2)
finish_grad_sums(const A* __restrict__ parts, int part_count, int C, A* __restrict__ ggamma,
                 A* __restrict__ gbeta) {
    __shared__ A betas[8][32], gammas[8][32];
    int c = blockIdx.x * 32 + threadIdx.x;
    A beta = 0, gamma = 0;
    if (c < C)
        for (int i = threadIdx.y; i < part_count; i += 8) {
            beta += parts[2 * i * (long long)C + c];
            gamma += parts[(2 * i + 1) * (long long)C + c];
        }
    betas[threadIdx.y][threadIdx.x] = beta, gammas[threadIdx.y][threadIdx.x] = gamma;
    __syncthreads();
    if (threadIdx.y || c >= C) return;
    for (int k = 1; k < 8; ++k) beta += betas[k][threadIdx.x], gamma += gammas[k][threadIdx.x];
    gbeta[c] = beta;
    ggamma[c] = gamma;
}

extern "C" __global__ void __launch_bounds__(256, 2)
grad_input(const T* __restrict__ gy, const T* __restrict__ x, int behind,
           const A* __restrict__ gamma, const A* __restrict__ beta, const A* __restrict__ mean,
           const A* __restrict__ inv_std, const A* __restrict__ ggamma,
           const A* __restrict__ gbeta, T* __restrict__ gx, long long rows,
           long long rows_per_part, int C) {
    Place p = place(rows, rows_per_part, C);
    if (!p.inside) return;
    A middle[V], scale[V], shift[V], by_mean[V], by_length[V];
#pragma unroll
    for (int v = 0; v < V; ++v) {
        int c = p.channel + v;
        middle[v] = mean[c];
        scale[v] = gamma ? gamma[c] * inv_std[c] : inv_std[c];
        shift[v] = beta ? beta[c] : A(0);
        by_mean[v] = gbeta[c] / A(rows);
        by_length[v] = ggamma[c] / A(rows) * inv_std[c];
    }
    for (long long r = p.back; r >= p.first; r -= p.step) {
        long long i = r * C + p.channel;
        Some<T, V> dy = load<V>(gy + i), xs = load<V>(x + i), result;
#pragma unroll
        for (int v = 0; v < V; ++v) {
            A centred = wide(xs.at[v]) - middle[v];
            A d = masked(wide(dy.at[v]), centred, scale[v], shift[v], A(0), behind);
            narrow(result.at[v], scale[v] * (d - by_mean[v] - centred * by_length[v]));
        }
        store<V>(gx + i, result);
    }
}
