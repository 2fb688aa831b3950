// Where a convolution reads: shared by all passes and algorithms.
//
// Sizes as everywhere: x (N, H, W, C), y (N, OH, OW, O), weight (O, KH, KW, C/G), all channels
// last, and input position = output position * stride - padding + tap * dilation.
#pragma once

#define GEOMETRY                                                                            \
    int N, int C, int H, int W, int O, int OH, int OW, int KH, int KW, int sh, int sw,      \
        int ph, int pw, int dh, int dw, int G

// One axis of a pass that gathers: it makes `count` positions, number i at place * i + first of an
// axis of `made`, each from `taps` positions of an axis of `read`: tap j reads at
// i * step + origin + j * reach, through weight tap tap_first + j * tap_step.
//
// Forward, that is the definition. The input gradient reads gy at (h + padding - u * dilation) /
// stride, where it divides evenly. All h of one residue modulo the stride have the same taps, so
// a residue is a dense gather of its own: nothing is multiplied by zeros between strides.
struct Axis {
    int count, taps, place, first, made, read, step, origin, reach, tap_first, tap_step;
};

__device__ __forceinline__ Axis forward_axis(int in, int out, int K, int s, int p, int d) {
    return {out, K, 1, 0, out, in, s, -p, d, 0, 1};
}

__device__ __forceinline__ Axis gradient_axis(int in, int out, int K, int s, int p, int d,
                                              int residue) {
    int a = s, b = d;  // their greatest common divisor, by Euclid
    while (b) {
        int rest = a % b;
        a = b;
        b = rest;
    }
    int tap_step = s / a, u = 0;
    while (u < tap_step && (residue + p - u * d) % s) ++u;
    int taps = u < tap_step && u < K ? (K - 1 - u) / tap_step + 1 : 0;
    int count = residue < in ? (in - 1 - residue) / s + 1 : 0;
    // Division is exact where there are taps.
    return {count, taps, s, residue, in, out, 1, (residue + p - u * d) / s, -(d / a), u, tap_step};
}
