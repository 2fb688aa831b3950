// A batch out of a set of images that lies in device memory: normalised, padded, cropped, mirrored.
//
//     n: an image of the batch        (k, top, left, mirrored) = draws[cursor + n]
//     column(w) = W - 1 - w if mirrored else w
//     (r, s) = (h + top - P, column(w) + left - P)
//     x[n, h, w, c] = (images[k, r, s, c] / 255 - mean[...]) / std[c], or 0 outside of the image
//     y[n] = labels[k]
//
// mean: per channel, or per pixel; std null for no division. The order of operations is that of
// the transforms on the CPU, and so are the bits. Padding comes after normalisation: zero is zero
// for the net. The cursor lies on the device, so that a captured graph goes on to the next batch by
// itself.
//
// Bound by memory: a thread per element writes in order; the bytes that it reads lie side by side
// but for the rows' ends.
#include "types.cuh"

struct Draw {
    int image, top, left, mirrored;
};

extern "C" __global__ void __launch_bounds__(256)
batch(const unsigned char* __restrict__ images, const long long* __restrict__ labels,
      const Draw* __restrict__ draws, const long long* __restrict__ cursor,
      const float* __restrict__ mean, const float* __restrict__ std, int mean_per_pixel,
      T* __restrict__ x, long long* __restrict__ y, long long size, int H, int W, int C, int P) {
    long long step = (long long)gridDim.x * blockDim.x;
    long long first = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    long long per_image = (long long)H * W * C, begin = cursor[0];
    for (long long i = first; i < size; i += step) {
        long long n = i / per_image;
        int place = int(i % per_image), c = place % C, w = place / C % W, h = place / C / W;
        Draw draw = draws[begin + n];
        if (place == 0) y[n] = labels[draw.image];
        int r = h + draw.top - P, s = (draw.mirrored ? W - 1 - w : w) + draw.left - P;
        float value = 0;
        if (r >= 0 && r < H && s >= 0 && s < W) {
            int pixel = (r * W + s) * C + c;
            value = float(images[draw.image * per_image + pixel]) / 255.0f;
            value -= mean[mean_per_pixel ? pixel : c];
            if (std) value /= std[c];
        }
        narrow(x[i], value);
    }
}
