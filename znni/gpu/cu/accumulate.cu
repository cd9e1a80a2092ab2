// Partial sums of a convolution, over pieces of its input channels, added up; with the last one comes the activation.
#include "activation.cuh"

#define EACH 4

// sum = activate(sum + part), of n elements; EACH to a thread, a block's width apart.
extern "C" __global__ void accumulate(float *__restrict__ sum, const float *__restrict__ part, long long n, float a, float b) {
    const long long first = (long long)blockIdx.x * (blockDim.x * EACH) + threadIdx.x;
    float values[EACH];
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
        const long long at = first + i * blockDim.x;
        values[i] = at < n ? sum[at] + part[at] : 0.0f;
    }
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
        const long long at = first + i * blockDim.x;
        if (at < n) sum[at] = activate(values[i], a, b);
    }
}
