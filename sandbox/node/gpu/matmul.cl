/* Matrix products for `node qualify`: C = A B, row-major, n a multiple of 128, one text for OpenCL C 1.2 and CUDA C++.
 *
 * `multiply_KIND` multiplies in KIND and adds up in 32 bits (fp64 in 64). Groups of 256 threads make 128 x 128 elements of C each; on CUDA
 * the narrow kinds run on tensor cores. These are honest kernels, not the fastest: cards are judged by shares that plain code reaches.
 */
#ifdef __OPENCL_VERSION__
#define KERNEL __attribute__((reqd_work_group_size(256, 1, 1))) __kernel void
#define GLOBAL __global
#define SHARED __local
#define BARRIER() barrier(CLK_LOCAL_MEM_FENCE)
#define LID ((u32)get_local_id(0))
#define GROUP ((u32)get_group_id(0))
typedef uint u32;
#ifdef FP64
#pragma OPENCL EXTENSION cl_khr_fp64 : enable
#endif
#ifdef FP16
#pragma OPENCL EXTENSION cl_khr_fp16 : enable
#endif
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <mma.h>
#define KERNEL extern "C" __global__ void __launch_bounds__(256)
#define GLOBAL
#define SHARED __shared__
#define BARRIER() __syncthreads()
#define LID (threadIdx.x)
#define GROUP (blockIdx.x)
typedef unsigned int u32;
#define FP64
#endif

#define TILE 128
#define STEP 8
#define EACH 8

/* Plain arithmetic: each thread keeps 8 x 8 elements of C in registers. */
#define PLAIN(NAME, IN, SUM)                                                                     \
    KERNEL NAME(const GLOBAL IN *a, const GLOBAL IN *b, GLOBAL SUM *c, u32 n)                    \
    {                                                                                            \
        SHARED IN left[STEP * TILE];                                                             \
        SHARED IN right[STEP * TILE];                                                            \
        const u32 across = n / TILE, row = GROUP / across * TILE, column = GROUP % across * TILE; \
        const u32 x = LID % 16, y = LID / 16;                                                    \
        SUM sum[EACH][EACH];                                                                     \
        for (u32 i = 0; i < EACH; i++)                                                           \
            for (u32 j = 0; j < EACH; j++)                                                       \
                sum[i][j] = 0;                                                                   \
        for (u32 k = 0; k < n; k += STEP) {                                                      \
            for (u32 i = LID; i < STEP * TILE; i += 256) {                                       \
                left[i % STEP * TILE + i / STEP] = a[(row + i / STEP) * n + k + i % STEP];       \
                right[i] = b[(k + i / TILE) * n + column + i % TILE];                            \
            }                                                                                    \
            BARRIER();                                                                           \
            for (u32 s = 0; s < STEP; s++) {                                                     \
                SUM one[EACH], two[EACH];                                                        \
                for (u32 i = 0; i < EACH; i++) {                                                 \
                    one[i] = (SUM)left[s * TILE + y + 16 * i];                                   \
                    two[i] = (SUM)right[s * TILE + x + 16 * i];                                  \
                }                                                                                \
                for (u32 i = 0; i < EACH; i++)                                                   \
                    for (u32 j = 0; j < EACH; j++)                                               \
                        sum[i][j] += one[i] * two[j];                                            \
            }                                                                                    \
            BARRIER();                                                                           \
        }                                                                                        \
        for (u32 i = 0; i < EACH; i++)                                                           \
            for (u32 j = 0; j < EACH; j++)                                                       \
                c[(row + y + 16 * i) * n + column + x + 16 * j] = sum[i][j];                     \
    }

PLAIN(multiply_fp32, float, float)
#ifdef FP64
PLAIN(multiply_fp64, double, double)
#endif

#ifdef __OPENCL_VERSION__
PLAIN(multiply_int8, char, int)
#ifdef FP16
PLAIN(multiply_fp16, half, float)
#endif
#else

/* Tensor cores: 8 warps of 32 x 64 elements each; the next 32 columns of A and rows of B are fetched while the present ones are used. */
#define DEEP 32

template <typename IN, typename SUM>
__device__ __forceinline__ void tensor(const IN *a, const IN *b, SUM *c, u32 n)
{
    using namespace nvcuda;
    constexpr u32 MANY = 16 / sizeof(IN), LEFT = DEEP + MANY, RIGHT = TILE + MANY, LOADS = TILE * DEEP / MANY / 256;
    __shared__ __align__(32) IN left[TILE * LEFT];
    __shared__ __align__(32) IN right[DEEP * RIGHT];
    const u32 across = n / TILE, row = GROUP / across * TILE, column = GROUP % across * TILE;
    const u32 down = LID / 64 * 32, over = LID / 32 % 2 * 64;
    wmma::fragment<wmma::accumulator, 16, 16, 16, SUM> sum[2][4];
    uint4 next_left[LOADS], next_right[LOADS];
#pragma unroll
    for (u32 i = 0; i < 2; i++)
#pragma unroll
        for (u32 j = 0; j < 4; j++)
            wmma::fill_fragment(sum[i][j], (SUM)0);
    for (u32 k = 0; k <= n; k += DEEP) {
        if (k < n)
#pragma unroll
            for (u32 i = 0; i < LOADS; i++) {
                const u32 at = (LID + 256 * i) * MANY;
                next_left[i] = *(const uint4 *)&a[(size_t)(row + at / DEEP) * n + k + at % DEEP];
                next_right[i] = *(const uint4 *)&b[(size_t)(k + at / TILE) * n + column + at % TILE];
            }
        if (k > 0)
#pragma unroll
            for (u32 s = 0; s < DEEP; s += 16) {
                wmma::fragment<wmma::matrix_a, 16, 16, 16, IN, wmma::row_major> one[2];
                wmma::fragment<wmma::matrix_b, 16, 16, 16, IN, wmma::row_major> two;
#pragma unroll
                for (u32 i = 0; i < 2; i++)
                    wmma::load_matrix_sync(one[i], &left[(down + 16 * i) * LEFT + s], LEFT);
#pragma unroll
                for (u32 j = 0; j < 4; j++) {
                    wmma::load_matrix_sync(two, &right[s * RIGHT + over + 16 * j], RIGHT);
#pragma unroll
                    for (u32 i = 0; i < 2; i++)
                        wmma::mma_sync(sum[i][j], one[i], two, sum[i][j]);
                }
            }
        __syncthreads();
        if (k < n)
#pragma unroll
            for (u32 i = 0; i < LOADS; i++) {
                const u32 at = (LID + 256 * i) * MANY;
                *(uint4 *)&left[at / DEEP * LEFT + at % DEEP] = next_left[i];
                *(uint4 *)&right[at / TILE * RIGHT + at % TILE] = next_right[i];
            }
        __syncthreads();
    }
#pragma unroll
    for (u32 i = 0; i < 2; i++)
#pragma unroll
        for (u32 j = 0; j < 4; j++)
            wmma::store_matrix_sync(&c[(size_t)(row + down + 16 * i) * n + column + over + 16 * j], sum[i][j], n, wmma::mem_row_major);
}

KERNEL multiply_fp16(const half *a, const half *b, float *c, u32 n) { tensor(a, b, c, n); }
KERNEL multiply_int8(const signed char *a, const signed char *b, int *c, u32 n) { tensor(a, b, c, n); }
#if __CUDA_ARCH__ >= 800
KERNEL multiply_bf16(const __nv_bfloat16 *a, const __nv_bfloat16 *b, float *c, u32 n) { tensor(a, b, c, n); }
#endif
#endif
