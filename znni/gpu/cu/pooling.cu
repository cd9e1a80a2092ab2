// Maxima over windows: max-pooling, max-filtering, and max-pooling fragments (MPF; Zlateski, Lee & Seung, SC'16).
//
// A thread has one place (y, x) of the positions that windows begin at, and goes along z. Where windows begin at every plane
// it goes from one plane to the next one of its window and keeps the maxima of those behind it, so that each costs a plane of
// the window, not all of it. Neighbours read neighbouring voxels: what windows share comes out of the L1 cache.
//
// With FRAGMENTS positions are all voxels, and position p is element p / stride of fragment p % stride, along each axis.
// A NaN in a window makes its maximum NaN.

#ifndef WINDOW_Z
#define WINDOW_Z 2
#define WINDOW_Y 2
#define WINDOW_X 2
#define DILATION_Z 1
#define DILATION_Y 1
#define DILATION_X 1
#define STRIDE_Z 2
#define STRIDE_Y 2
#define STRIDE_X 2
#define FRAGMENTS 1
#endif
#ifndef CHUNK
#define CHUNK 8
#endif

#if FRAGMENTS
#define STEP_Z 1
#define STEP_Y 1
#define STEP_X 1
#define LATTICES_Z STRIDE_Z
#define LATTICES_Y STRIDE_Y
#define LATTICES_X STRIDE_X
#else
#define STEP_Z STRIDE_Z
#define STEP_Y STRIDE_Y
#define STEP_X STRIDE_X
#define LATTICES_Z 1
#define LATTICES_Y 1
#define LATTICES_X 1
#endif
// From one position of a thread to its next: with STEP_Z 1, planes of one window.
#if STEP_Z == 1
#define STRAND DILATION_Z
#else
#define STRAND 1
#endif

__device__ static inline float larger(float a, float b) { return b > a || b != b ? b : a; }

__device__ static inline float plane_maximum(const float *x, long long row) {
    float most = *x;
#pragma unroll
    for (int y = 0; y < WINDOW_Y; ++y)
#pragma unroll
        for (int i = 0; i < WINDOW_X; ++i) most = larger(most, x[y * (DILATION_Y * row) + i * DILATION_X]);
    return most;
}

// x: images of `image` voxels, in planes of in_y x in_x; nz, ny, nx: positions. Grid: (images * plane_blocks, STRAND * chunks).
extern "C" __global__ void pool(const float *__restrict__ x, float *__restrict__ out, int channels, long long image, int in_y,
                                int in_x, int nz, int ny, int nx, int plane_blocks) {
    const long long at_image = blockIdx.x / plane_blocks;
    const int at = (int)(blockIdx.x % plane_blocks * blockDim.x + threadIdx.x);
    const int first = (int)(blockIdx.y / STRAND) * (STRAND * CHUNK) + (int)(blockIdx.y % STRAND);
    if (at >= ny * nx || first >= nz) return;
    const int at_y = at / nx, at_x = at % nx;

    const long long plane = (long long)in_y * in_x;
    x += at_image * image + (long long)first * STEP_Z * plane + (long long)at_y * STEP_Y * in_x + at_x * STEP_X;

    const long long out_plane = (long long)(ny / LATTICES_Y) * (nx / LATTICES_X), volume = nz / LATTICES_Z * out_plane;
    const long long fragment = channels * volume, batch = at_image / channels;
    out += at_image * volume + batch * (LATTICES_Z * LATTICES_Y * LATTICES_X - 1) * fragment;
    out += (at_y % LATTICES_Y * LATTICES_X + at_x % LATTICES_X) * fragment;
    out += (long long)(at_y / LATTICES_Y) * (nx / LATTICES_X) + at_x / LATTICES_X;

#if STEP_Z == 1
    float behind[WINDOW_Z];  // maxima of the window's planes, the first one last
#pragma unroll
    for (int k = 1; k < WINDOW_Z; ++k) {
        behind[WINDOW_Z - k] = plane_maximum(x, in_x);
        x += DILATION_Z * plane;
    }
    for (int z = first, i = 0; i < CHUNK && z < nz; z += STRAND, ++i) {
        float most = behind[0] = plane_maximum(x, in_x);
        x += DILATION_Z * plane;
#pragma unroll
        for (int k = WINDOW_Z - 1; k > 0; --k) {
            most = larger(most, behind[k]);
            behind[k] = behind[k - 1];
        }
        out[z % LATTICES_Z * (LATTICES_Y * LATTICES_X) * fragment + z / LATTICES_Z * out_plane] = most;
    }
#else
    for (int z = first, i = 0; i < CHUNK && z < nz; ++z, ++i) {
        float most = plane_maximum(x, in_x);
        for (int k = 1; k < WINDOW_Z; ++k) most = larger(most, plane_maximum(x + k * (DILATION_Z * plane), in_x));
        out[z * out_plane] = most;
        x += STEP_Z * plane;
    }
#endif
}
