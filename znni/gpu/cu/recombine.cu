// Recombining fragments into the dense result that they are the sub-lattices of: all at once, or some of them at a time.
//
// MEMBERS fragments have voxels in the same rows of the result. Lanes go over them first, so that a row is written as it lies
// (all of it where MEMBERS is the step along x), while each fragment's row is read from its beginning to its end.

#ifndef MEMBERS
#define MEMBERS 2
#endif

// Fragment i lies from sources[i] on in x and writes from targets[i] on in out, channels * qz * qy * qx voxels each, `step`
// apart in the result; entries are grouped by MEMBERS. Grid: (groups * channels * row_blocks); block: (row, rows).
extern "C" __global__ void recombine(const float *__restrict__ x, float *__restrict__ out,
                                     const long long *__restrict__ sources, const long long *__restrict__ targets,
                                     int channels, int qz, int qy, int qx, int step_z, int step_y, int step_x,
                                     int row_blocks) {
    const int image = (int)(blockIdx.x / row_blocks), group = image / channels, channel = image % channels;
    const int row = (int)(blockIdx.x % row_blocks * blockDim.y + threadIdx.y);
    if (row >= qz * qy) return;
    const long long nx = (long long)qx * step_x, plane = nx * qy * step_y;
    x += ((long long)channel * (qz * qy) + row) * qx;
    out += (long long)channel * qz * step_z * plane + row / qy * (step_z * plane) + row % qy * (step_y * nx);
    sources += (long long)group * MEMBERS;
    targets += (long long)group * MEMBERS;
    for (int i = (int)threadIdx.x; i < qx * MEMBERS; i += (int)blockDim.x) {
        const int q = i / MEMBERS, member = i % MEMBERS;
        out[targets[member] + (long long)q * step_x] = x[sources[member] + q];
    }
}
