# cython: language_level=3
"""What the tiled FFT takes from C: transforms, planes, rows of voxels and matrix products, one SIMD lane a channel."""

cdef extern from "fft_lanes.h" nogil:
    enum: ZN_LANES
    enum: ZN_POINT
    enum: ZN_FFT_MAX_PASSES
    ctypedef struct zn_fft:
        int n
    ctypedef struct zn_lines:
        float *re
        float *im
        long step
        long next
        int count
    int zn_fft_factor(int n, int *radix)
    int zn_fft_good(int n)
    long zn_fft_table_floats(int n)
    long zn_fft_scratch_floats(int n)
    int zn_fft_init(zn_fft *plan, int n, const float *table)
    void zn_fft_table(int n, float *table)
    zn_lines zn_lines_at(const float *re, const float *im, long step, long next, int count)
    zn_lines zn_lines_of(const float *points, int inverse, long step, long next, int count)
    void zn_fft_lines(const zn_fft *plan, const zn_lines *source, const zn_lines *target, long lines, float *scratch)

cdef extern from "fft_planes.h" nogil:
    void zn_stream_fence()
    long zn_columns_before(int nx, int ny, int kx)
    int zn_plane_columns(int nx, int ny, int kx)
    float *zn_columns_split(int ny, int count, const float *line, const float *mirror, int alone, float *columns,
                            long step)
    const float *zn_columns_merge(int ny, int count, const float *columns, long step, int alone, float *line,
                                  float *mirror)
    void zn_points_scale(float *points, int count, float factor)
    void zn_points_clear(float *points, long step, int count)
    void zn_points_prefetch(const float *points, long step, int count)

cdef extern from "short_lines.h" nogil:
    enum: ZN_ALIKE
    enum: ZN_FEW_TAPS
    void zn_circle(int n, float *circle)
    void zn_short_line(int n, int first, int last, const float *circle, const float *points, int count, float *z,
                       long width)
    void zn_short_panels(int width, int n, int k, const float *circle, const float *points, int count,
                         long apart, long depth, float *panels, long step)
    void zn_short_alike(int n, int k, int *alike)
    int zn_short_last(int n)

cdef extern from "complex_gemm.h" nogil:
    enum: ZN_CGEMM_WIDTH
    int zn_cgemm_width(int gauss)
    int zn_cgemm_parts(int gauss)
    void zn_cgemm_rows(int gauss, const float *points, long next, long lines, float *a, long plane)
    void zn_cgemm_panel(int width, const float *points, long next, long apart, long depth, float *panel)
    void zn_cgemm(int gauss, int width, long rows, long depth, const float *a, long row, long plane, const float *panel,
                  float *c)

cdef extern from "seconds.h" nogil:
    double zn_stage_begin(const double *spent)
    double zn_stage_end(double *spent, int stage, double since)

cdef extern from "lane_rows.h" nogil:
    ctypedef struct zn_vec:
        pass
    zn_vec zn_load(const float *p)
    void zn_rows_load_within(const float **row, const float *lowest, const float *highest, long offset,
                             const float *begin, const float *end, int count, int stride, float *to, long step)
    void zn_rows_prefetch(const float **row, long offset, long floats)
    void zn_rows_store(const float *source, long step, int count, zn_vec bias, int code, float a, float b,
                       float **row, long offset, int stride, const int *first, const int *last)

cdef extern from "lane_blocks.h" nogil:
    void zn_block_load(const float *re, const float *im, long step, int begin, int end, float *points)
    void zn_block_prefetch(const float *voxels, long floats)
    void zn_block_store(const float *source, long step, int count, zn_vec bias, int code, float a, float b, int lanes,
                        int stream, float *voxels, long apart)
