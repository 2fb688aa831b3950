// Softmax over the rows of a matrix: log-softmax, its gradient, and cross-entropy in one pass.
//
//     L = max_k x_k + log sum_k exp(x_k - max x)          (log-sum-exp; no exponential overflows)
//     log_softmax       y_k  = x_k - L
//     log_softmax_grad  gx_k = gy_k - exp(y_k) * sum_j gy_j
//     cross_entropy     loss = L - sum_k q_k x_k          q = (1 - e) * [k = label] + e / K
//                       gx_k = exp(x_k - L) - q_k
//
// A warp per row. The maximum and the sum come from one pass over the row: when a larger maximum
// m' turns up, the sum so far is multiplied by exp(m - m'). The second pass finds the row in cache.
#include "types.cuh"

using A = Sum<T>;
constexpr unsigned ALL = 0xffffffffu;

// exp(a - b) for a <= b; 1 where both are the same infinity.
__device__ __forceinline__ A scale(A a, A b) { return a == b ? A(1) : exp(a - b); }

__device__ __forceinline__ A warp_sum(A value) {
    for (int k = 16; k; k /= 2) value += __shfl_xor_sync(ALL, value, k);
    return value;
}

struct Row {
    A maximum, log_sum;
};

__device__ __forceinline__ Row log_sum_exp(const T* x, int K, int lane) {
    A maximum = -infinity(), sum = 0;
    for (int k = lane; k < K; k += 32) {
        A value = wide(x[k]);
        if (value > maximum) {
            sum *= scale(maximum, value);
            maximum = value;
        }
        sum += exp(value - maximum);
    }
    for (int k = 16; k; k /= 2) {
        A other = __shfl_xor_sync(ALL, maximum, k), part = __shfl_xor_sync(ALL, sum, k);
        A both = other > maximum ? other : maximum;
        sum = sum * scale(maximum, both) + part * scale(other, both);
        maximum = both;
    }
    return {maximum, log(sum)};
}

extern "C" __global__ void __launch_bounds__(256)
log_softmax(const T* __restrict__ x, T* __restrict__ y, long long rows, int K) {
    int lane = threadIdx.x % 32;
    long long step = (long long)gridDim.x * 8;
    for (long long r = blockIdx.x * 8ll + threadIdx.x / 32; r < rows; r += step) {
        Row row = log_sum_exp(x + r * K, K, lane);
        for (int k = lane; k < K; k += 32)
            narrow(y[r * K + k], wide(x[r * K + k]) - row.maximum - row.log_sum);
    }
}

extern "C" __global__ void __launch_bounds__(256)
log_softmax_grad(const T* __restrict__ gy, const T* __restrict__ y, T* __restrict__ gx,
                 long long rows, int K) {
    int lane = threadIdx.x % 32;
    long long step = (long long)gridDim.x * 8;
    for (long long r = blockIdx.x * 8ll + threadIdx.x / 32; r < rows; r += step) {
        A sum = 0;
        for (int k = lane; k < K; k += 32) sum += wide(gy[r * K + k]);
        sum = warp_sum(sum);
        for (int k = lane; k < K; k += 32)
            narrow(gx[r * K + k], wide(gy[r * K + k]) - exp(wide(y[r * K + k])) * sum);
    }
}

// A label that is `ignored` has loss 0 and no gradient; any other one outside [0, K) has loss NaN.
extern "C" __global__ void __launch_bounds__(256)
cross_entropy(const T* __restrict__ x, const long long* __restrict__ labels, long long ignored,
              double smoothing, A* __restrict__ losses, T* __restrict__ gx, long long rows, int K) {
    int lane = threadIdx.x % 32;
    long long step = (long long)gridDim.x * 8;
    A smooth = A(smoothing);
    for (long long r = blockIdx.x * 8ll + threadIdx.x / 32; r < rows; r += step) {
        long long label = labels[r];
        bool known = label >= 0 && label < K, kept = label != ignored;
        Row row = log_sum_exp(x + r * K, K, lane);
        A sum = 0;
        for (int k = lane; k < K; k += 32) {
            A y = wide(x[r * K + k]) - row.maximum - row.log_sum;
            A q = (k == label ? 1 - smooth : A(0)) + smooth / K;
            sum += q != 0 ? q * y : A(0);
            narrow(gx[r * K + k], kept ? exp(y) - q : A(0));
        }
        sum = warp_sum(sum);
        if (lane == 0) losses[r] = !kept ? A(0) : known ? -sum : A(not_a_number());
    }
}
