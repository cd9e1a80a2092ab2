/* What is computed voxel by voxel. Grid: (images * chunks), where an image is cut into `chunks` of CHUNK voxels next to each
 * other; block: (THREADS). */
#include "activation.cuh"

#define THREADS 256
/* Voxels of a thread, THREADS apart. */
#define EACH 4
#define CHUNK (THREADS * EACH)

struct Voxels {
    long long image;
    long long at[EACH]; /* the last one again where there are no more, */
    bool wanted[EACH];  /* and these are not stored */
};

__device__ __forceinline__ Voxels voxels_of(long long voxels, int chunks) {
    Voxels mine;
    mine.image = (long long)(blockIdx.x / (unsigned)chunks);
    const long long first = (long long)(blockIdx.x % (unsigned)chunks) * CHUNK + threadIdx.x;
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
        mine.wanted[i] = first + i * THREADS < voxels;
        mine.at[i] = min(first + i * THREADS, voxels - 1);
    }
    return mine;
}

/* Maxima over `channels` channels of x, NaN where one of them is. */
__device__ __forceinline__ void maxima(float (&top)[EACH], const float *x, int channels, long long voxels, const Voxels &mine) {
#pragma unroll
    for (int i = 0; i < EACH; ++i) top[i] = x[mine.at[i]];
    for (int c = 1; c < channels; ++c)
#pragma unroll
        for (int i = 0; i < EACH; ++i) {
            const float value = x[c * voxels + mine.at[i]];
            top[i] = value > top[i] || value != value ? value : top[i];
        }
}

/* exp(x - max x) / sum exp(x - max x) over channels; x is read again from the caches. Images: the batch. */
extern "C" __global__ void __launch_bounds__(THREADS)
softmax(const float *__restrict__ x, float *__restrict__ out, int channels, long long voxels, int chunks) {
    const Voxels mine = voxels_of(voxels, chunks);
    x += mine.image * channels * voxels;
    out += mine.image * channels * voxels;
    float top[EACH], sum[EACH] = {};
    maxima(top, x, channels, voxels, mine);
    for (int c = 0; c < channels; ++c)
#pragma unroll
        for (int i = 0; i < EACH; ++i) sum[i] += expf(x[c * voxels + mine.at[i]] - top[i]);
#pragma unroll
    for (int i = 0; i < EACH; ++i) sum[i] = 1.0f / sum[i];
    for (int c = 0; c < channels; ++c)
#pragma unroll
        for (int i = 0; i < EACH; ++i)
            if (mine.wanted[i]) out[c * voxels + mine.at[i]] = expf(x[c * voxels + mine.at[i]] - top[i]) * sum[i];
}

/* Maximum of `group` channels next to each other. Images: the batch times the channels of out. */
extern "C" __global__ void __launch_bounds__(THREADS)
maxout(const float *__restrict__ x, float *__restrict__ out, int group, long long voxels, int chunks) {
    const Voxels mine = voxels_of(voxels, chunks);
    float top[EACH];
    maxima(top, x + mine.image * group * voxels, group, voxels, mine);
#pragma unroll
    for (int i = 0; i < EACH; ++i)
        if (mine.wanted[i]) out[mine.image * voxels + mine.at[i]] = top[i];
}

/* y = activation(y + bias), in place. Images: the batch times the channels. */
extern "C" __global__ void __launch_bounds__(THREADS)
bias_activate(float *__restrict__ y, const float *__restrict__ bias, int channels, long long voxels, int chunks,
              int activation, float a, float b) {
    const Voxels mine = voxels_of(voxels, chunks);
    const float shift = bias[(int)mine.image % channels];
    float values[EACH];
    y += mine.image * voxels;
#pragma unroll
    for (int i = 0; i < EACH; ++i) values[i] = mine.wanted[i] ? y[mine.at[i]] + shift : 0.0f;
    activate(values, activation, a, b);
#pragma unroll
    for (int i = 0; i < EACH; ++i)
        if (mine.wanted[i]) y[mine.at[i]] = values[i];
}
