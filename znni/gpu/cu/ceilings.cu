// What a device can do at most: multiply-adds in registers, and a triad through its memory (McCalpin's STREAM, 1995).

#ifndef CHAINS
#define CHAINS 8 // independent sums of a thread: more than the multiply-adds that a pipeline holds
#endif
#ifndef UNROLL
#define UNROLL 16
#endif
#ifndef LOADS
#define LOADS 4 // of each array that a thread has in flight
#endif

// out[thread] = what keeps the sums from being optimised away; 2 * CHAINS * UNROLL * rounds operations a thread
extern "C" __global__ void multiply_adds(float *out, int rounds, float factor, float addend)
{
    float sums[CHAINS];
    for (int c = 0; c < CHAINS; ++c)
        sums[c] = (float)(threadIdx.x + c);
    for (int round = 0; round < rounds; ++round)
#pragma unroll
        for (int step = 0; step < UNROLL; ++step)
#pragma unroll
            for (int c = 0; c < CHAINS; ++c)
                sums[c] = fmaf(sums[c], factor, addend);
    float total = 0.0f;
    for (int c = 0; c < CHAINS; ++c)
        total += sums[c];
    out[(long long)blockIdx.x * blockDim.x + threadIdx.x] = total;
}

// c = a + scale * b, where each block has tiles * LOADS * blockDim.x elements
extern "C" __global__ void triad(const float *__restrict__ a, const float *__restrict__ b, float *__restrict__ c,
                                 float scale, int tiles)
{
    const long long tile_elements = (long long)LOADS * blockDim.x;
    long long at = (long long)blockIdx.x * tiles * tile_elements + threadIdx.x;
    for (int tile = 0; tile < tiles; ++tile, at += tile_elements) {
        float of_a[LOADS], of_b[LOADS];
#pragma unroll
        for (int i = 0; i < LOADS; ++i) {
            of_a[i] = a[at + (long long)i * blockDim.x];
            of_b[i] = b[at + (long long)i * blockDim.x];
        }
#pragma unroll
        for (int i = 0; i < LOADS; ++i)
            c[at + (long long)i * blockDim.x] = of_a[i] + scale * of_b[i];
    }
}
